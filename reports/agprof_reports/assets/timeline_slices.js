// What the time line of a device trace draws: its slices, unpacked, and the rows they lie on.
// charts/trace_timeline.py states how the page carries them.
const timelineSlices = (() => {
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

  const RULER = 26, ROW = { path: 16, device: 20, host: 16 }, GROUP_GAP = 10, THREAD_GAP = 6;
  const RANK = { path: 0, device: 1, host: 2 };
  // The lanes in drawing order, each with its place, and the height of all.
  const arrange = (lanes) => {
    const rows = [...lanes].sort((a, b) => RANK[a.group] - RANK[b.group]); // stable: lanes keep their order
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
    return { rows, height: height + 4 };
  };
  return { RULER, GROUP_GAP, UNITS, above, arrange, bytesOf, count, time, unpack };
})();
