// The page reads without this script; it adds charts, tips, tables that sort and search, and the switch of colours.
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, props = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), props);
    element.append(...children);
    return element;
  };
  const say = (text) => { $("#said").textContent = text; };

  // --- light and dark ------------------------------------------------------------------------------------------
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const theme = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const switcher = make("button", { type: "button", id: "theme" });
  const nameSwitch = () => { switcher.textContent = theme() === "dark" ? "light colours" : "dark colours"; };
  try {
    const kept = localStorage.getItem("agprof-theme");
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch { /* storage is not there for some file: pages */ }
  switcher.addEventListener("click", () => {
    document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("agprof-theme", theme()); } catch { /* as above */ }
    nameSwitch();
    redrawAll();
  });
  dark.addEventListener("change", () => { nameSwitch(); redrawAll(); });
  nameSwitch();
  $("#tools").append(switcher);

  // --- tips: what a mark stands for ----------------------------------------------------------------------------
  const tip = $("#tip");
  for (const element of $$(".source[title], td[title], .saving-value[title]")) {
    element.dataset.tip = element.title;
    element.removeAttribute("title");
  }
  let owner = null;
  const placeTip = () => {
    if (!owner) return;
    const at = owner.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
    tip.style.top = `${at.bottom + 8 + size.height > innerHeight ? at.top - size.height - 8 : at.bottom + 8}px`;
  };
  const showTip = (event) => {
    owner = event.target.closest?.("[data-tip]") ?? null;
    tip.hidden = !owner;
    tip.textContent = owner?.dataset.tip ?? "";
    placeTip();
  };
  document.addEventListener("mouseover", showTip);
  document.addEventListener("focusin", showTip);
  document.addEventListener("focusout", () => { tip.hidden = true; owner = null; });
  document.addEventListener("scroll", placeTip, { passive: true, capture: true });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  // --- tables --------------------------------------------------------------------------------------------------
  const number = (text) => {
    const value = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(value) ? -Infinity : value;
  };
  const heads = (table) => $$("thead th", table);
  const sort = (table, column, head) => {
    const up = head.getAttribute("aria-sort") === "descending";
    const numeric = head.classList.contains("n");
    const key = (row) => {
      const cell = row.cells[column];
      return numeric ? number(cell.dataset.v ?? cell.textContent) : cell.textContent.trim();
    };
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    const sign = up ? 1 : -1;
    rows.sort(([a], [b]) => (numeric ? sign * (a - b || 0) : -sign * a.localeCompare(b)));
    for (const other of heads(table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
  const csv = (table) => {
    const cell = (text) => {
      const plain = text.trim().replace(/^[=+@]/, "'$&"); // a spreadsheet must not run it
      return /[",\n]/.test(plain) ? `"${plain.replace(/"/g, '""')}"` : plain;
    };
    const bare = (td) => {
      if (td.dataset.v) return td.dataset.v;
      return td.classList.contains("n") ? td.textContent.replace(/,/g, "").replace("–", "") : td.textContent;
    };
    const head = (th) => {
      const unit = th.dataset.unit ?? $(".sub", th)?.firstChild.textContent.trim();
      return cell($(".head", th).textContent + (unit ? `, ${unit}` : ""));
    };
    const lines = [heads(table).map(head).join(",")];
    for (const row of table.tBodies[0].rows) {
      if (!row.hidden) lines.push([...row.cells].map((td) => cell(bare(td))).join(","));
    }
    return lines.join("\n") + "\n";
  };
  const copy = async (text) => {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* file: pages may not have it */ }
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  };
  for (const holder of $$(".table")) {
    const table = $("table", holder);
    heads(table).forEach((head, column) => {
      const words = $(".head", head);
      const button = make("button", { type: "button", className: "head", textContent: words.textContent });
      button.addEventListener("click", () => sort(table, column, head));
      words.replaceWith(button);
    });
    const tools = make("div", { className: "table-tools" });
    const rows = [...table.tBodies[0].rows];
    const texts = new Map(); // a row's text in small letters, made when it is first needed
    const textOf = (row) => {
      if (!texts.has(row)) texts.set(row, row.textContent.toLowerCase());
      return texts.get(row);
    };
    let wanted = "", chosen = "";
    const sift = () => {
      for (const row of rows) {
        row.hidden = !textOf(row).includes(wanted) || (chosen && row.cells[holder.dataset.filter].textContent !== chosen);
      }
    };
    if (rows.length > 6) {
      const search = make("input", { type: "search", placeholder: "search", ariaLabel: `search ${table.caption.textContent}` });
      search.addEventListener("input", () => {
        wanted = search.value.toLowerCase();
        sift();
      });
      tools.append(search);
    }
    const kinds = holder.dataset.filter ? [...new Set(rows.map((row) => row.cells[holder.dataset.filter].textContent))].sort() : [];
    if (kinds.length > 1) {
      const what = heads(table)[holder.dataset.filter].textContent.trim();
      const choice = make("select", { ariaLabel: `${what}, ${table.caption.textContent}` }, make("option", { value: "", textContent: `${what}: all` }));
      choice.append(...kinds.map((kind) => make("option", { value: kind, textContent: kind })));
      choice.addEventListener("change", () => { chosen = choice.value; sift(); });
      tools.append(choice);
    }
    const button = make("button", { type: "button", className: "copy", textContent: "copy as CSV" });
    button.addEventListener("click", async () => {
      const done = await copy(csv(table));
      button.textContent = done ? "copied" : "could not copy";
      say(button.textContent);
      setTimeout(() => { button.textContent = "copy as CSV"; }, 1500);
    });
    tools.append(button);
    $(".scroll", holder).before(tools);
    const cut = () => { const box = $(".scroll", holder); box.classList.toggle("cut", box.scrollHeight > box.clientHeight + 1); };
    new ResizeObserver(cut).observe(table);
  }

  // --- section list --------------------------------------------------------------------------------------------
  const links = new Map($$("nav.sections a").map((link) => [link.hash.slice(1), link]));
  const here = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting || !links.has(entry.target.id)) continue;
      for (const link of links.values()) { link.classList.remove("here"); link.removeAttribute("aria-current"); }
      const link = links.get(entry.target.id);
      link.classList.add("here");
      link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "0px 0px -75% 0px" });
  for (const section of $$("main > section")) here.observe(section);

  // --- charts --------------------------------------------------------------------------------------------------
  const unpack = async (base64) => {
    const bytes = Uint8Array.from(atob(base64.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  };
  let library = null;
  const loadPlotly = () => {
    library ??= unpack($("#plotly").textContent).then((source) => {
      document.head.append(make("script", { textContent: source })); // allowed by its hash
      if (!window.Plotly) throw new Error("plotly did not start");
    });
    return library;
  };

  // Names of colours (`$forward`) become colours of the style sheet, under keys that hold colours and nowhere else.
  const COLOUR_KEYS = new Set(["color", "colors", "fillcolor", "bgcolor", "bordercolor", "fgcolor", "gridcolor", "colorscale"]);
  const coloured = (value, look, inColour = false) => {
    if (typeof value === "string") return inColour && value.startsWith("$") ? look(value.slice(1)) : value;
    if (Array.isArray(value)) {
      const plain = value.length === 0 || typeof value[0] !== "object" || value[0] === null;
      if (!inColour && plain) return value.length < 8 ? [...value] : value; // plotly writes into ranges
      return value.map((item) => coloured(item, look, inColour));
    }
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, look, COLOUR_KEYS.has(key))]));
  };
  const merged = (base, over) => {
    const out = { ...base };
    for (const [key, value] of Object.entries(over)) {
      const both = value && out[key] && !Array.isArray(value) && typeof value === "object" && typeof out[key] === "object";
      out[key] = both ? merged(out[key], value) : value;
    }
    return out;
  };
  const axis = { gridcolor: "$line", zerolinecolor: "$line", linecolor: "$line", automargin: false, title: { standoff: 8, font: { color: "$muted", size: 12 } }, tickfont: { color: "$muted" } };
  const base = (height) => ({
    height, autosize: true, showlegend: false, dragmode: "zoom", hovermode: "x unified",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "$text" },
    margin: { l: 56, r: 16, t: 8, b: 40 }, separators: ".,",
    xaxis: axis, yaxis: axis,
    hoverlabel: { bgcolor: "$raised", bordercolor: "$line", font: { color: "$text", size: 12 }, align: "left", namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: "$muted", activecolor: "$text" },
    transition: { duration: 0 },
  });
  const LOOKS = ["gridcolor", "zerolinecolor", "linecolor", "activecolor", "paper_bgcolor", "plot_bgcolor"];
  for (const key of LOOKS) COLOUR_KEYS.add(key);
  const config = {
    displaylogo: false, responsive: true, displayModeBar: "hover", doubleClick: "reset", showTips: false,
    modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg" },
  };

  const specs = new Map(); // plot -> its spec, once read
  const drawn = new Set();
  let range = null; // the span of time that all charts over the run show; null: all of it
  const axisOf = (plot) => plot.closest(".chart").dataset.axis;
  const readSpec = async (plot) => {
    if (!specs.has(plot)) {
      const element = $(`#${CSS.escape(plot.dataset.spec)}`);
      specs.set(plot, JSON.parse(element.type === "text/plain" ? await unpack(element.textContent) : element.textContent));
    }
    return specs.get(plot);
  };
  const dressed = (plot) => {
    const style = getComputedStyle(document.documentElement);
    const look = (name) => style.getPropertyValue(`--${name}`).trim() || "#999999";
    const spec = specs.get(plot);
    const narrow = plot.clientWidth < 520;
    const layout = merged(base(Number(plot.dataset.height)), spec.layout);
    if (narrow) { // less room at the sides, and no names over the shades
      layout.margin = { ...layout.margin, l: Math.min(layout.margin.l, 152), r: Math.min(layout.margin.r, 72) };
      layout.annotations = layout.annotations?.filter((note) => note.yref !== "paper" && note.name !== "wide");
      layout.font = { ...layout.font, size: 11 };
      layout.yaxis = merged({ tickfont: { size: 11 } }, layout.yaxis);
    }
    if (range && axisOf(plot) === "run") layout.xaxis = { ...layout.xaxis, range: [...range], autorange: false };
    for (const key of Object.keys(layout)) if (/^yaxis\d+$/.test(key)) layout[key] = merged(merged(axis, { tickfont: { size: narrow ? 11 : 12 } }), layout[key]);
    return coloured({ data: spec.data, layout }, look);
  };

  // Over the run a hover's head says the time under the pointer, and which step and phase lie there.
  const headOf = (plot) => (event) => {
    const axisNow = plot._fullLayout?.xaxis, area = $(".nsewdrag", plot);
    if (!axisNow || !area || event.clientX === undefined) return;
    const at = axisNow.p2d(event.clientX - area.getBoundingClientRect().left), words = agprofMoments.words(at);
    if (!words) return;
    axisNow.unifiedhovertitle = { text: `${Number(at.toFixed(3))} s · ${words}` };
    for (const { _meta } of plot._fullData) if (_meta) _meta.meta = `<br>${words}`; // heat maps have no unified hover
  };
  const readMoments = async () => {
    const element = $("#moments");
    if (element) agprofMoments.read(element.type === "text/plain" ? await unpack(element.textContent) : element.textContent);
  };

  const wholeOf = (plot) => specs.get(plot).layout.xaxis.range;
  const follow = (from, wanted) => {
    range = wanted;
    for (const plot of drawn) {
      if (plot === from || axisOf(plot) !== "run") continue;
      plot.dataset.following = "1";
      const update = { "xaxis.range": [...(range ?? wholeOf(plot))] };
      Plotly.relayout(plot, update).then(() => { delete plot.dataset.following; });
    }
    for (const button of $$(".reset")) button.hidden = !range;
  };
  const zoomTo = (plot, wanted) => {
    Plotly.relayout(plot, { "xaxis.range": [...(wanted ?? wholeOf(plot))] });
  };
  const keys = (plot, event) => {
    const axisNow = plot._fullLayout?.xaxis;
    if (!axisNow || axisNow.fixedrange || !specs.get(plot).layout.xaxis?.range || event.target !== plot) return;
    const [low, high] = axisNow.range.map(Number), width = high - low;
    const moves = {
      ArrowLeft: [low - width / 8, high - width / 8], ArrowRight: [low + width / 8, high + width / 8],
      "+": [low + width / 4, high - width / 4], "-": [low - width / 2, high + width / 2], 0: null,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    zoomTo(plot, moves[event.key]);
  };
  const tools = (plot) => {
    const bar = make("div", { className: "chart-tools" });
    const spec = specs.get(plot);
    const buttons = (spec.variants ?? []).map((variant, index) => {
      const button = make("button", { type: "button", textContent: variant.label, ariaPressed: String(index === 0) });
      button.addEventListener("click", () => {
        for (const other of buttons) other.ariaPressed = String(other === button);
        for (const [path, values] of Object.entries(variant.data)) {
          const steps = path.split("."), last = steps.pop();
          let target = spec.data[0];
          for (const step of steps) target = target[step];
          target[last] = values[0];
        }
        draw(plot);
      });
      return button;
    });
    if (axisOf(plot) === "run") {
      const reset = make("button", { type: "button", className: "reset", textContent: "whole run", hidden: !range });
      reset.addEventListener("click", () => zoomTo(plot, null));
      buttons.push(reset);
    }
    bar.append(...buttons);
    if (buttons.length) $("figcaption", plot.closest(".chart")).append(bar);
  };
  const draw = async (plot) => {
    const { data, layout } = dressed(plot);
    const first = !drawn.has(plot);
    if (first) { plot.replaceChildren(); drawn.add(plot); tools(plot); }
    await Plotly.react(plot, data, layout, {
      ...config,
      toImageButtonOptions: { ...config.toImageButtonOptions, filename: plot.closest(".chart").id },
    });
    if (!first) return;
    plot.dataset.drawn = "1";
    plot.addEventListener("keydown", (event) => keys(plot, event));
    if (axisOf(plot) === "run") {
      plot.on("plotly_beforehover", headOf(plot));
      plot.on("plotly_relayout", (update) => {
        if (plot.dataset.following) return;
        const low = update["xaxis.range[0]"] ?? update["xaxis.range"]?.[0];
        const high = update["xaxis.range[1]"] ?? update["xaxis.range"]?.[1];
        if (low === undefined || high === undefined) return;
        const whole = wholeOf(plot);
        follow(plot, Number(low) === whole[0] && Number(high) === whole[1] ? null : [Number(low), Number(high)]);
      });
    }
  };
  const failed = (plot, error) => {
    plot.dataset.failed = "1";
    const words = `This chart could not be drawn (${error.message}); its table has the same figures.`;
    plot.append(make("p", { className: "note", textContent: words }));
  };
  const redrawAll = () => { for (const plot of drawn) draw(plot); };

  // Charts are drawn one after another, when they come near the window.
  let queue = readMoments();
  const pause = () => new Promise((resume) => { setTimeout(resume, 0); });
  const enqueue = (plot) => {
    queue = queue
      .then(() => Promise.all([loadPlotly(), readSpec(plot)]))
      .then(() => draw(plot))
      .catch((error) => failed(plot, error))
      .then(pause);
  };
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      enqueue(entry.target);
    }
  }, { rootMargin: "400px 0px" });
  for (const plot of $$(".plot")) near.observe(plot);
  // Paper is light: charts are drawn again for it, and given back their colours afterwards.
  let screenTheme = null;
  window.addEventListener("beforeprint", () => {
    screenTheme = document.documentElement.dataset.theme ?? "";
    document.documentElement.dataset.theme = "light";
    if (window.Plotly) for (const plot of $$(".plot")) if (specs.has(plot)) draw(plot);
  });
  window.addEventListener("afterprint", () => {
    if (screenTheme) document.documentElement.dataset.theme = screenTheme;
    else delete document.documentElement.dataset.theme;
    redrawAll();
  });
})();
