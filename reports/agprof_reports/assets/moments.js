"use strict";
// Step and phase of one rank at a moment of the run; moments.py states the code. Empty where the page carries none.
const agprofMoments = (() => {
  const TICKS_PER_S = 10000;
  let told; // what the page carries, once read; null: nothing
  const sums = (distances) => { let at = 0; return distances.map((distance) => (at += distance)); };
  const read = (text) => {
    const data = JSON.parse(text);
    data.steps.at = sums(data.steps.at);
    if (data.phases) data.phases.at = sums(data.phases.at);
    told = data;
  };
  // the stretch that holds the moment: index, or -1
  const within = ({ at, long }, tick) => {
    let low = 0, high = at.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (at[middle] <= tick) low = middle + 1; else high = middle;
    }
    return low > 0 && tick < at[low - 1] + Math.max(long[low - 1], 1) ? low - 1 : -1;
  };
  const words = (seconds) => {
    if (!told) return "";
    const tick = seconds * TICKS_PER_S, { steps, phases } = told;
    const step = within(steps, tick);
    if (step < 0) return `rank ${told.rank}: no step`;
    const first = steps.first[step], last = steps.last[step];
    if (first !== last) return `rank ${told.rank}: steps ${first.toLocaleString("en")}–${last.toLocaleString("en")}`;
    const phase = phases ? within(phases, tick) : -1;
    const doing = phases ? `, ${phase < 0 ? "between phases" : phases.names[phases.name[phase]]}` : "";
    return `rank ${told.rank}: step ${first.toLocaleString("en")}${doing}`;
  };
  return { read, words };
})();
