// The time line of a device trace under the hands of its reader: moving, zooming, search, tips, keys, fingers.
// timeline_slices.js unpacks what the page carries, timeline_paint.js draws it.
(() => {
  const make = (tag, props = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children);
    return element;
  };
  const { RULER, above, arrange, bytesOf, count, time, unpack } = timelineSlices;
  const LEAST_SPAN_NS = 20;

  const start = (figure, head, bytes) => {
    const lanes = unpack(head, bytes), placed = arrange(lanes), { rows, height } = placed;
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

    // --- the view ------------------------------------------------------------------------------------------------
    const view = { from: 0, to: head.window, width: 0, tall: 0, gutter: 0, matched: null, chosen: null };
    const painter = timelinePainter(canvas, head, placed, view);
    const draw = () => {
      if (!view.width) return;
      const begun = performance.now(), rects = painter.draw(box.scrollTop);
      whole.disabled = isWhole();
      Object.assign(figure.dataset, {
        from: Math.round(view.from), to: Math.round(view.to), rects, drawMs: (performance.now() - begun).toFixed(2), drawn: "1",
      });
    };
    let waiting = false;
    const plot = () => Math.max(view.width - view.gutter, 1);
    const tOf = (x) => view.from + (x - view.gutter) / plot() * (view.to - view.from);
    const redraw = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => { waiting = false; draw(); });
    };
    const show = (low, high) => {
      const span = Math.min(Math.max(high - low, LEAST_SPAN_NS), head.window);
      const middle = (low + high) / 2;
      view.from = Math.min(Math.max(middle - span / 2, 0), head.window - span);
      view.to = view.from + span;
      tip.hidden = true;
      redraw();
    };
    const zoom = (factor, at = (view.from + view.to) / 2) => show(at - (at - view.from) * factor, at + (view.to - at) * factor);
    const pan = (ns) => {
      const by = Math.min(Math.max(ns, -view.from), head.window - view.to);
      show(view.from + by, view.to + by);
    };
    const isWhole = () => view.to - view.from >= head.window;

    const resize = () => {
      view.width = box.clientWidth;
      if (!view.width) return;
      view.gutter = view.width < 520 ? 76 : 128;
      view.tall = Math.min(height, innerWidth < 520 ? 440 : 600);
      box.style.maxHeight = `${view.tall + 2}px`;
      spacer.style.height = `${height - view.tall}px`;
      redraw();
    };

    // --- what lies under a point ---------------------------------------------------------------------------------
    const under = (x, y) => {
      const deep = y + box.scrollTop, lane = rows.find((row) => deep >= row.top && deep <= row.top + row.height);
      if (!lane || y < RULER || x < view.gutter) return null;
      const t = tOf(x), reach = 2 * (view.to - view.from) / plot();
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
      view.chosen = slice;
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
      view.matched = null;
      if (wanted) {
        const names = head.names.map((name) => name.toLowerCase().includes(wanted));
        view.matched = Uint8Array.from(head.pairs, ([name]) => Number(names[name]));
        for (const lane of lanes) {
          if (lane.group === "path") continue;
          for (let i = 0; i < lane.count; i++) if (view.matched[lane.pairs[i]]) { times++; sum += lane.lasts[i]; }
        }
      }
      found.textContent = wanted ? times ? `${count(times)} of ${count(total)}, ${time(sum)}` : "no such name" : "";
      before.hidden = after.hidden = !times;
      figure.dataset.matches = String(times);
      redraw();
    };
    const go = (by) => {
      if (!view.matched) return;
      if (!order) {
        order = [];
        for (const lane of rows) {
          if (lane.group !== "path") for (let i = 0; i < lane.count; i++) if (view.matched[lane.pairs[i]]) order.push({ lane, i });
        }
        order.sort((a, b) => a.lane.begins[a.i] - b.lane.begins[b.i]);
        place = by > 0 ? order.findIndex(({ lane, i }) => lane.begins[i] >= view.from) - 1 : order.length;
      }
      if (!order.length) return;
      place = (place + by + order.length) % order.length;
      const slice = order[place], { lane, i } = slice, begin = lane.begins[i], last = lane.lasts[i];
      const wide = Math.min(Math.max(view.to - view.from, last * 1.5), Math.max(last * 30, LEAST_SPAN_NS)); // it is then seen
      show(begin + last / 2 - wide / 2, begin + last / 2 + wide / 2);
      if (lane.top < box.scrollTop + RULER || lane.top + lane.height > box.scrollTop + view.tall) {
        box.scrollTop = lane.top - view.tall / 2;
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
        zoom(Math.exp(event.deltaY * lines * 0.002), tOf(Math.max(at(event)[0], view.gutter)));
      } else pan(across * lines * (view.to - view.from) / plot());
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
        pinch ??= { gap, span: view.to - view.from, t: tOf(middle) };
        const wide = pinch.span * pinch.gap / gap;
        const low = pinch.t - (middle - view.gutter) / plot() * wide;
        show(low, low + wide);
      } else if (fingers.size === 1) {
        pan((held[0] - x) / plot() * (view.to - view.from));
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
        ArrowLeft: () => pan((view.from - view.to) / 8), ArrowRight: () => pan((view.to - view.from) / 8),
        "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => show(0, head.window),
        "/": () => search.focus(), n: () => go(1), N: () => go(-1), Escape: () => choose(null),
      };
      if (!(event.key in acts)) return;
      event.preventDefault();
      acts[event.key]();
    });

    new ResizeObserver(resize).observe(box);
    const again = () => { painter.forgetColours(); redraw(); };
    new MutationObserver(again).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    try { // another screen, or the page is zoomed
      new ResizeObserver(redraw).observe(canvas, { box: "device-pixel-content-box" });
    } catch { addEventListener("resize", redraw); }
    addEventListener("beforeprint", () => { painter.forgetColours(); draw(); });
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
