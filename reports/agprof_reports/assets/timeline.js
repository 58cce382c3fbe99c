// The time line of a device trace: up to 10^5 slices on a canvas. charts/trace_timeline.py states what the page carries.
// Each frame looks at the slices in view alone (binary search), and draws one rectangle at most per lane and pixel.
(() => {
  const make = (tag, props = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children);
    return element;
  };
  const bytesOf = async (base64) => {
    const packed = Uint8Array.from(atob(base64.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const UNITS = [[1e9, "s"], [1e6, "ms"], [1e3, "µs"], [1, "ns"]];
  const time = (ns, digits = 3) => {
    const [size, unit] = UNITS.find(([least]) => Math.abs(ns) >= least * 0.9995) ?? UNITS[3];
    const value = ns / size;
    const places = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.max(Math.abs(value), 1e-9))));
    return `${unit === "ns" ? Math.round(value) : value.toFixed(Math.min(places, 9))}\u00a0${unit}`;
  };
  const count = (n) => n.toLocaleString("en");
  // first index whose value is above the limit; the values ascend
  const above = (values, limit) => {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] > limit) high = middle; else low = middle + 1;
    }
    return low;
  };

  const unpack = (head, bytes) => {
    let at = 0;
    const next = () => {
      let value = 0, place = 1, byte;
      do { byte = bytes[at++]; value += (byte & 127) * place; place *= 128; } while (byte > 127);
      return value;
    };
    return head.lanes.map((lane) => {
      const n = lane.count;
      const begins = new Float64Array(n), lasts = new Float64Array(n), ends = new Float64Array(n), pairs = new Uint32Array(n);
      for (let i = 0, t = 0; i < n; i++) begins[i] = t += next();
      for (let i = 0, end = 0; i < n; i++) {
        lasts[i] = next();
        ends[i] = end = Math.max(end, begins[i] + lasts[i]); // ascends, also where slices overlap
      }
      for (let i = 0; i < n; i++) pairs[i] = next();
      const marks = new Uint32Array(lane.marks);
      for (let i = 0, m = 0; i < lane.marks; i++) marks[i] = m += next();
      return { ...lane, begins, lasts, ends, pairs, marks };
    });
  };

  const RULER = 26, ROW = { path: 16, device: 20, host: 16 }, GROUP_GAP = 10, THREAD_GAP = 6, LEAST_SPAN_NS = 20;

  const start = (figure, head, bytes) => {
    const lanes = unpack(head, bytes);
    const total = lanes.reduce((sum, lane) => sum + (lane.group === "path" ? 0 : lane.count), 0);
    const holder = figure.querySelector(".tl");
    const box = make("div", { className: "tl-box", tabIndex: 0, ariaLabel: holder.getAttribute("aria-label") });
    box.setAttribute("role", "application");
    const canvas = make("canvas"), spacer = make("div"), tip = make("div", { className: "tl-tip", hidden: true });
    const search = make("input", { type: "search", placeholder: "search names", ariaLabel: "search names in the time line" });
    const found = make("span", { className: "tl-found" }), told = make("p", { className: "tl-info note" });
    told.setAttribute("aria-live", "polite");
    const button = (text, label, act) => {
      const element = make("button", { type: "button", textContent: text, ariaLabel: label, title: label });
      element.addEventListener("click", act);
      return element;
    };
    const before = button("‹", "match before", () => go(-1)), after = button("›", "next match", () => go(1));
    before.hidden = after.hidden = true;
    const whole = button("whole window", "show the whole window", () => show(0, head.window));
    const zooms = make("span", { className: "tl-zooms" },
      button("−", "zoom out", () => zoom(2)), button("+", "zoom in", () => zoom(0.5)), whole);
    box.append(canvas, spacer);
    holder.replaceChildren(make("div", { className: "tl-tools" }, search, before, after, found, zooms), box, told, tip);
    const hint = matchMedia("(pointer: coarse)").matches
      ? "Drag to move, pinch to zoom; a tap tells what a slice is."
      : "Drag to move. Click, then zoom with the wheel, + and −; 0 shows the whole window, / searches.";
    told.textContent = hint;

    // --- rows ----------------------------------------------------------------------------------------------------
    const rank = { path: 0, device: 1, host: 2 };
    const rows = [...lanes].sort((a, b) => rank[a.group] - rank[b.group]); // stable: lanes keep their order
    let height = RULER;
    rows.forEach((lane, i) => {
      const last = rows[i - 1];
      if (last && last.group !== lane.group) height += GROUP_GAP;
      else if (last && lane.group === "host" && lane.depth <= last.depth) height += THREAD_GAP;
      lane.named = !last || last.label !== lane.label || last.group !== lane.group;
      lane.top = height;
      lane.height = ROW[lane.group] ?? ROW.host;
      height += lane.height + 1;
    });
    height += 4;

    // --- colours, again whenever they change ---------------------------------------------------------------------
    let looks;
    const look = () => {
      const style = getComputedStyle(document.documentElement);
      const of = (name) => style.getPropertyValue(`--${name}`).trim() || "#999999";
      looks = {
        text: of("text"), muted: of("muted"), line: of("line"), page: of("page"), link: of("link"), raised: of("raised"),
        kinds: head.kinds.map(({ colour }) => of(colour)), on: head.kinds.map(({ colour }) => of(`on-${colour}`)),
        hatched: head.kinds.map(({ colour }) => colour === "tl-synchronisation" || colour === "idle"),
        font: getComputedStyle(document.body).fontFamily,
      };
      const tile = make("canvas", { width: 6, height: 6 }), brush = tile.getContext("2d");
      brush.strokeStyle = of("hatch");
      brush.beginPath();
      for (const x of [-6, 0, 6]) { brush.moveTo(x, 6); brush.lineTo(x + 6, 0); }
      brush.stroke();
      looks.hatch = canvas.getContext("2d").createPattern(tile, "repeat");
    };

    // --- the view ------------------------------------------------------------------------------------------------
    let from = 0, to = head.window, width = 0, viewHeight = 0, gutter = 0, matched = null, chosen = null, waiting = false;
    const plot = () => Math.max(width - gutter, 1);
    const xOf = (t) => gutter + (t - from) / (to - from) * plot();
    const tOf = (x) => from + (x - gutter) / plot() * (to - from);
    const redraw = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; draw(); });
    };
    const show = (low, high) => {
      const span = Math.min(Math.max(high - low, LEAST_SPAN_NS), head.window);
      const middle = (low + high) / 2;
      from = Math.min(Math.max(middle - span / 2, 0), head.window - span);
      to = from + span;
      tip.hidden = true;
      redraw();
    };
    const zoom = (factor, at = (from + to) / 2) => show(at - (at - from) * factor, at + (to - at) * factor);
    const pan = (ns) => {
      const by = Math.min(Math.max(ns, -from), head.window - to);
      show(from + by, to + by);
    };
    const isWhole = () => to - from >= head.window;

    // --- drawing -------------------------------------------------------------------------------------------------
    const resize = () => {
      width = box.clientWidth;
      if (!width) return;
      gutter = width < 520 ? 76 : 128;
      viewHeight = Math.min(height, innerWidth < 520 ? 440 : 600);
      box.style.maxHeight = `${viewHeight + 2}px`;
      spacer.style.height = `${height - viewHeight}px`;
      redraw();
    };
    const fitted = (pen, text, room) => {
      if (pen.measureText(text).width <= room) return text;
      let low = 0, high = Math.min(text.length, Math.floor(room / 3));
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (pen.measureText(`${text.slice(0, middle)}…`).width <= room) low = middle; else high = middle - 1;
      }
      return low > 1 ? `${text.slice(0, low)}…` : "";
    };
    const ruler = (pen) => {
      const span = to - from, wanted = span / Math.max(plot() / 96, 2), power = 10 ** Math.floor(Math.log10(wanted));
      const step = Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= wanted));
      const [size, unit] = UNITS.find(([least]) => to >= least) ?? UNITS[3];
      const places = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
      pen.font = `11px ${looks.font}`;
      pen.textBaseline = "alphabetic";
      for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
        const x = Math.round(xOf(t)) + 0.5;
        pen.fillStyle = looks.line;
        pen.fillRect(x - 0.5, RULER - 6, 1, viewHeight);
        pen.fillStyle = looks.muted;
        const text = `${(t / size).toFixed(places)} ${unit}`;
        if (x + pen.measureText(text).width + 4 < width) pen.fillText(text, x + 3, 18);
      }
      pen.fillStyle = looks.line;
      pen.fillRect(gutter, 0, plot(), 3);
      pen.fillStyle = looks.muted;
      pen.fillRect(gutter + from / head.window * plot(), 0, Math.max(span / head.window * plot(), 3), 3);
    };
    const draw = () => {
      if (!width) return;
      if (!looks) look();
      const begun = performance.now(), ratio = devicePixelRatio || 1;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(viewHeight * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(viewHeight * ratio);
        canvas.style.width = `${width}px`;
        canvas.style.height = `${viewHeight}px`;
      }
      const pen = canvas.getContext("2d"), scroll = box.scrollTop;
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.fillStyle = looks.page;
      pen.fillRect(0, 0, width, viewHeight);
      ruler(pen);
      let rects = 0;
      const hits = new Uint8Array(width + 1); // pixels that hold a match, shown under the ruler
      pen.save();
      pen.beginPath();
      pen.rect(0, RULER, width, viewHeight - RULER);
      pen.clip();
      pen.translate(0, -scroll);
      for (const lane of rows) {
        if (lane.top + lane.height < scroll + RULER || lane.top > scroll + viewHeight) continue;
        rects += drawLane(pen, lane, hits);
      }
      labels(pen);
      pen.restore();
      pen.fillStyle = looks.link;
      for (let x = gutter; x < width; x++) if (hits[x]) pen.fillRect(x, RULER - 4, 1, 4);
      whole.disabled = isWhole();
      Object.assign(figure.dataset, {
        from: Math.round(from), to: Math.round(to), rects, drawMs: (performance.now() - begun).toFixed(2), drawn: "1",
      });
    };
    const sums = new Float64Array(head.kinds.length);
    const drawLane = (pen, lane, hits) => {
      const { begins, lasts, pairs, top } = lane, scale = plot() / (to - from), tall = lane.height;
      const first = above(lane.ends, from), end = above(begins, to);
      let rects = 0, column = -1, best = -1, covered = 0, hit = false; // what falls on one pixel
      let runX = 0, runW = 0, runKind = -1, runAlpha = 0; // neighbours that look the same
      const flushRun = () => {
        if (runW) {
          pen.globalAlpha = runAlpha;
          pen.fillStyle = looks.kinds[runKind];
          pen.fillRect(runX, top, runW, tall);
          rects++;
        }
        runW = 0;
      };
      const flush = () => {
        if (column < 0) return;
        const dim = matched && !hit;
        // four shades by how much of the pixel is taken: thin slices must not look like a solid block
        const alpha = dim ? 0.15 : hit ? 1 : 0.4 + 0.2 * Math.min(3, Math.floor(covered * 4));
        if (hit) hits[Math.min(column, width)] = 1;
        if (runW && runX + runW === column && runKind === best && runAlpha === alpha) runW += 1;
        else { flushRun(); [runX, runW, runKind, runAlpha] = [column, 1, best, alpha]; }
        sums.fill(0);
        column = -1;
      };
      const texts = [];
      for (let i = first; i < end; i++) {
        const x = gutter + (begins[i] - from) * scale, w = lasts[i] * scale;
        if (x + w < gutter) continue; // an earlier, shorter one of overlapping slices
        const kind = head.pairs[pairs[i]][1], match = matched !== null && matched[pairs[i]] === 1;
        if (w < 1.5) {
          const at = Math.max(Math.floor(x), gutter);
          if (at !== column) { flush(); column = at; best = kind; covered = 0; hit = false; }
          sums[kind] += lasts[i];
          if (sums[kind] > sums[best]) best = kind;
          covered += w;
          if (match && !hit) { hit = true; }
          continue;
        }
        flush();
        flushRun();
        const left = Math.max(x, gutter), right = Math.min(x + w, width), wide = Math.max(right - left - (w > 4 ? 1 : 0), 1);
        pen.globalAlpha = matched && !match ? 0.15 : 1;
        pen.fillStyle = looks.kinds[kind];
        pen.fillRect(left, top, wide, tall);
        rects++;
        if (match) hits.fill(1, Math.floor(left), Math.max(Math.floor(right), Math.floor(left) + 1));
        if (looks.hatched[kind] && wide > 4) { pen.fillStyle = looks.hatch; pen.fillRect(left, top, wide, tall); }
        if (wide > 34 && (!matched || match)) texts.push(left, wide, pairs[i]);
      }
      flush();
      flushRun();
      pen.globalAlpha = 1;
      pen.font = `${tall > 16 ? 12 : 11}px ${looks.font}`;
      pen.textBaseline = "middle";
      for (let i = 0; i < texts.length; i += 3) {
        const [name, kind] = head.pairs[texts[i + 2]];
        pen.fillStyle = looks.on[kind];
        pen.fillText(fitted(pen, head.names[name], texts[i + 1] - 8), texts[i] + 4, top + tall / 2 + 0.5);
      }
      outline(pen, lane, first, end, scale);
      return rects;
    };
    // What the critical path goes through: a frame where there is room for one, else a line below.
    const outline = (pen, lane, first, end, scale) => {
      const { marks, begins, lasts, top, height: tall } = lane;
      pen.strokeStyle = pen.fillStyle = looks.text;
      pen.lineWidth = 1.5;
      let last = -1;
      for (let m = above(marks, first - 1); m < marks.length && marks[m] < end; m++) {
        const i = marks[m], x = Math.max(gutter + (begins[i] - from) * scale, gutter);
        const right = Math.min(gutter + (begins[i] + lasts[i] - from) * scale, width);
        if (right - x >= 6) pen.strokeRect(x + 0.75, top + 0.75, Math.max(right - x - 2.5, 1), tall - 1.5);
        else if (Math.floor(x) !== last) { last = Math.floor(x); pen.fillRect(last, top + tall - 2, Math.max(right - x, 1), 2); }
      }
      if (chosen?.lane === lane) {
        const x = Math.max(gutter + (begins[chosen.i] - from) * scale, gutter);
        const right = Math.min(gutter + (begins[chosen.i] + lasts[chosen.i] - from) * scale, width);
        if (right < gutter || x > width) return;
        pen.strokeStyle = looks.link;
        pen.lineWidth = 2;
        pen.strokeRect(x - 1, top - 1, Math.max(right - x, 2) + 2, tall + 2);
      }
    };
    const labels = (pen) => {
      pen.fillStyle = looks.page;
      pen.fillRect(0, 0, gutter - 1, height + RULER);
      pen.font = `${width < 520 ? 11 : 12}px ${looks.font}`;
      pen.textBaseline = "middle";
      pen.fillStyle = looks.muted;
      rows.forEach((lane, i) => {
        const short = width < 520 ? lane.label.replace(/^thread /, "") : lane.label;
        if (lane.named) pen.fillText(fitted(pen, short, gutter - 10), 0, lane.top + lane.height / 2 + 0.5);
        if (i && rows[i - 1].group !== lane.group) {
          pen.fillStyle = looks.line;
          pen.fillRect(0, lane.top - GROUP_GAP / 2, width, 1);
          pen.fillStyle = looks.muted;
        }
      });
    };

    // --- what lies under a point ---------------------------------------------------------------------------------
    const under = (x, y) => {
      const deep = y + box.scrollTop, lane = rows.find((row) => deep >= row.top && deep <= row.top + row.height);
      if (!lane || y < RULER || x < gutter) return null;
      const t = tOf(x), reach = 2 * (to - from) / plot();
      let best = null, bestLast = -1;
      for (let i = above(lane.begins, t + reach) - 1, seen = 0; i >= 0 && seen < 4096 && lane.ends[i] > t - reach; i--, seen++) {
        if (lane.begins[i] + lane.lasts[i] < t - reach) continue;
        const inside = lane.begins[i] <= t && t <= lane.begins[i] + lane.lasts[i];
        const weight = lane.lasts[i] + (inside ? head.window : 0);
        if (weight > bestLast) { bestLast = weight; best = { lane, i }; }
      }
      return best;
    };
    const nameOf = ({ lane, i }) => head.names[head.pairs[lane.pairs[i]][0]];
    const kindOf = ({ lane, i }) => head.kinds[head.pairs[lane.pairs[i]][1]].word;
    const span = ({ lane, i }) => `${time(lane.lasts[i])} from ${time(lane.begins[i], 5)}`;
    const showTip = (slice, x, y) => {
      tip.hidden = !slice;
      if (!slice) return;
      tip.replaceChildren(
        make("b", { textContent: nameOf(slice).slice(0, 300) }),
        make("span", { textContent: `${kindOf(slice)}, ${slice.lane.label}` }), make("span", { textContent: span(slice) }));
      const room = holder.getBoundingClientRect(), area = canvas.getBoundingClientRect(), size = tip.getBoundingClientRect();
      const left = area.left - room.left + x + 14, topAt = area.top - room.top + y + 16;
      tip.style.left = `${Math.max(0, left + size.width > room.width ? left - size.width - 28 : left)}px`;
      tip.style.top = `${topAt}px`;
    };
    const choose = (slice) => {
      chosen = slice;
      if (slice) {
        const pair = slice.lane.pairs[slice.i];
        let times = 0, sum = 0;
        for (const lane of lanes) {
          if (lane.group !== slice.lane.group) continue;
          for (let i = 0; i < lane.count; i++) if (lane.pairs[i] === pair) { times++; sum += lane.lasts[i]; }
        }
        told.replaceChildren(
          make("code", { textContent: nameOf(slice) }),
          ` ${kindOf(slice)} on ${slice.lane.label}: ${span(slice)}. ${count(times)} of this name, ${time(sum)} in all.`);
      } else told.textContent = hint;
      redraw();
    };

    // --- search --------------------------------------------------------------------------------------------------
    let order = null, place = -1;
    const seek = () => {
      const wanted = search.value.trim().toLowerCase();
      order = null;
      place = -1;
      let times = 0, sum = 0;
      matched = null;
      if (wanted) {
        const names = head.names.map((name) => name.toLowerCase().includes(wanted));
        matched = Uint8Array.from(head.pairs, ([name]) => Number(names[name]));
        for (const lane of lanes) {
          if (lane.group === "path") continue;
          for (let i = 0; i < lane.count; i++) if (matched[lane.pairs[i]]) { times++; sum += lane.lasts[i]; }
        }
      }
      found.textContent = wanted ? times ? `${count(times)} of ${count(total)}, ${time(sum)}` : "no such name" : "";
      before.hidden = after.hidden = !times;
      figure.dataset.matches = String(times);
      redraw();
    };
    const go = (by) => {
      if (!matched) return;
      if (!order) {
        order = [];
        for (const lane of rows) {
          if (lane.group !== "path") for (let i = 0; i < lane.count; i++) if (matched[lane.pairs[i]]) order.push({ lane, i });
        }
        order.sort((a, b) => a.lane.begins[a.i] - b.lane.begins[b.i]);
        place = by > 0 ? order.findIndex(({ lane, i }) => lane.begins[i] >= from) - 1 : order.length;
      }
      if (!order.length) return;
      place = (place + by + order.length) % order.length;
      const slice = order[place], { lane, i } = slice, begin = lane.begins[i], last = lane.lasts[i];
      const wide = Math.min(Math.max(to - from, last * 1.5), Math.max(last * 30, LEAST_SPAN_NS)); // it is then seen
      show(begin + last / 2 - wide / 2, begin + last / 2 + wide / 2);
      if (lane.top < box.scrollTop + RULER || lane.top + lane.height > box.scrollTop + viewHeight) {
        box.scrollTop = lane.top - viewHeight / 2;
      }
      choose(slice);
    };
    let soon = 0;
    search.addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(seek, 60); });
    search.addEventListener("keydown", (event) => {
      if (event.key === "Enter") { event.preventDefault(); clearTimeout(soon); if (!order) seek(); go(event.shiftKey ? -1 : 1); }
      if (event.key === "Escape") { search.value = ""; seek(); box.focus(); }
    });

    // --- hands ---------------------------------------------------------------------------------------------------
    const at = (event) => {
      const area = canvas.getBoundingClientRect();
      return [event.clientX - area.left, event.clientY - area.top];
    };
    // The page scrolls under the wheel until the reader takes up the time line.
    box.addEventListener("wheel", (event) => {
      if (document.activeElement !== box && !event.ctrlKey && !event.metaKey) return;
      const lines = event.deltaMode === 1 ? 16 : 1, across = event.shiftKey ? event.deltaY : event.deltaX;
      if (!event.shiftKey && Math.abs(event.deltaY) >= Math.abs(event.deltaX)) {
        if (event.deltaY > 0 && isWhole()) return;
        zoom(Math.exp(event.deltaY * lines * 0.002), tOf(Math.max(at(event)[0], gutter)));
      } else pan(across * lines * (to - from) / plot());
      event.preventDefault();
    }, { passive: false });
    const fingers = new Map();
    let moved = 0, pinch = null;
    box.addEventListener("pointerdown", (event) => {
      if (event.button > 0 || event.target !== canvas) return;
      fingers.set(event.pointerId, at(event));
      if (fingers.size === 1) moved = 0;
      pinch = null;
      canvas.setPointerCapture(event.pointerId);
      box.focus({ preventScroll: true });
    });
    box.addEventListener("pointermove", (event) => {
      const [x, y] = at(event), held = fingers.get(event.pointerId);
      if (!held) {
        if (event.pointerType === "mouse") showTip(under(x, y), x, y);
        return;
      }
      fingers.set(event.pointerId, [x, y]);
      moved += Math.abs(x - held[0]) + Math.abs(y - held[1]);
      if (moved < 4) return;
      if (fingers.size === 2) {
        const [a, b] = [...fingers.values()], gap = Math.max(Math.abs(a[0] - b[0]), 8), middle = (a[0] + b[0]) / 2;
        pinch ??= { gap, span: to - from, t: tOf(middle) };
        const wide = pinch.span * pinch.gap / gap;
        const low = pinch.t - (middle - gutter) / plot() * wide;
        show(low, low + wide);
      } else if (fingers.size === 1) {
        pan((held[0] - x) / plot() * (to - from));
        if (event.pointerType === "mouse") box.scrollTop += held[1] - y;
      }
    });
    const release = (event) => {
      if (!fingers.delete(event.pointerId)) return;
      pinch = null;
      if (event.type === "pointerup" && moved < 4) choose(under(...at(event)));
    };
    box.addEventListener("pointerup", release);
    box.addEventListener("pointercancel", release);
    box.addEventListener("pointerleave", () => { tip.hidden = true; });
    box.addEventListener("dblclick", (event) => {
      const slice = under(...at(event));
      if (!slice) return show(0, head.window);
      const begin = slice.lane.begins[slice.i], last = Math.max(slice.lane.lasts[slice.i], 1);
      return show(begin - last / 2, begin + last * 1.5);
    });
    box.addEventListener("scroll", () => { tip.hidden = true; redraw(); });
    box.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const acts = {
        ArrowLeft: () => pan((from - to) / 8), ArrowRight: () => pan((to - from) / 8),
        "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => show(0, head.window),
        "/": () => search.focus(), n: () => go(1), N: () => go(-1), Escape: () => choose(null),
      };
      if (!(event.key in acts)) return;
      event.preventDefault();
      acts[event.key]();
    });

    new ResizeObserver(resize).observe(box);
    const again = () => { looks = null; redraw(); };
    new MutationObserver(again).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    try { // another screen, or the page is zoomed
      new ResizeObserver(redraw).observe(canvas, { box: "device-pixel-content-box" });
    } catch { addEventListener("resize", redraw); }
    addEventListener("beforeprint", () => { looks = null; draw(); });
    addEventListener("afterprint", again);
    resize();
  };

  const open = async (figure) => {
    const holder = figure.querySelector(".tl");
    try {
      if (!("DecompressionStream" in window)) throw new Error("this browser has no DecompressionStream");
      const spec = document.getElementById(`spec-${figure.dataset.slices}`);
      const packed = spec.type === "text/plain";
      const text = packed ? new TextDecoder().decode(await bytesOf(spec.textContent)) : spec.textContent;
      start(figure, JSON.parse(text), await bytesOf(document.getElementById(`slices-${figure.dataset.slices}`).textContent));
    } catch (error) {
      figure.dataset.failed = "1";
      const words = `The time line could not be drawn (${error.message}); its table holds the sums.`;
      holder.replaceChildren(make("p", { className: "note", textContent: words }));
    }
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      open(entry.target);
    }
  }, { rootMargin: "600px 0px" });
  for (const figure of document.querySelectorAll("[data-slices]")) near.observe(figure);
})();
