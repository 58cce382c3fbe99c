// Draws a view of the time line on its canvas. Each frame looks at the slices in view alone (binary search), and draws
// one rectangle at most per lane and pixel.
const timelinePainter = (() => {
  const { RULER, GROUP_GAP, UNITS, above } = timelineSlices;
  // `view`: from and to in ns; width, tall and gutter in pixels; matched pairs or null; the chosen slice or null.
  return (canvas, head, { rows, height }, view) => {
    const plot = () => Math.max(view.width - view.gutter, 1);
    const xOf = (t) => view.gutter + (t - view.from) / (view.to - view.from) * plot();
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
      const tile = Object.assign(document.createElement("canvas"), { width: 6, height: 6 }), brush = tile.getContext("2d");
      brush.strokeStyle = of("hatch");
      brush.beginPath();
      for (const x of [-6, 0, 6]) { brush.moveTo(x, 6); brush.lineTo(x + 6, 0); }
      brush.stroke();
      looks.hatch = canvas.getContext("2d").createPattern(tile, "repeat");
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
      const { from, to, width, gutter, tall } = view;
      const span = to - from, wanted = span / Math.max(plot() / 96, 2), power = 10 ** Math.floor(Math.log10(wanted));
      const step = Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= wanted));
      const [size, unit] = UNITS.find(([least]) => to >= least) ?? UNITS[3];
      const places = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
      pen.font = `11px ${looks.font}`;
      pen.textBaseline = "alphabetic";
      for (let t = Math.ceil(from / step) * step; t <= to; t += step) {
        const x = Math.round(xOf(t)) + 0.5;
        pen.fillStyle = looks.line;
        pen.fillRect(x - 0.5, RULER - 6, 1, tall);
        pen.fillStyle = looks.muted;
        const text = `${(t / size).toFixed(places)} ${unit}`;
        if (x + pen.measureText(text).width + 4 < width) pen.fillText(text, x + 3, 18);
      }
      pen.fillStyle = looks.line;
      pen.fillRect(gutter, 0, plot(), 3);
      pen.fillStyle = looks.muted;
      pen.fillRect(gutter + from / head.window * plot(), 0, Math.max(span / head.window * plot(), 3), 3);
    };
    // Draw the view; the number of rectangles that it took.
    const draw = (scroll) => {
      const { width, gutter, tall } = view;
      if (!looks) look();
      const ratio = devicePixelRatio || 1;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(tall * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(tall * ratio);
        canvas.style.width = `${width}px`;
        canvas.style.height = `${tall}px`;
      }
      const pen = canvas.getContext("2d");
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.fillStyle = looks.page;
      pen.fillRect(0, 0, width, tall);
      ruler(pen);
      let rects = 0;
      const hits = new Uint8Array(width + 1); // pixels that hold a match, shown under the ruler
      pen.save();
      pen.beginPath();
      pen.rect(0, RULER, width, tall - RULER);
      pen.clip();
      pen.translate(0, -scroll);
      for (const lane of rows) {
        if (lane.top + lane.height < scroll + RULER || lane.top > scroll + tall) continue;
        rects += drawLane(pen, lane, hits);
      }
      labels(pen);
      pen.restore();
      pen.fillStyle = looks.link;
      for (let x = gutter; x < width; x++) if (hits[x]) pen.fillRect(x, RULER - 4, 1, 4);
      return rects;
    };
    const sums = new Float64Array(head.kinds.length);
    const drawLane = (pen, lane, hits) => {
      const { from, to, width, gutter, matched } = view;
      const { begins, lasts, pairs, top, height: tall } = lane, scale = plot() / (to - from);
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
          hit ||= match;
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
      const { from, width, gutter, chosen } = view;
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
      const { width, gutter } = view;
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
    return { draw, forgetColours: () => { looks = null; } };
  };
})();
