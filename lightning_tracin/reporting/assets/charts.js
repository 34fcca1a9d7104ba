// The heat map and the curves. Without them, or without JavaScript, the page shows them as pictures.
"use strict";

(async () => {
  const { element, number, fill } = tracin;
  const LOWERS = d3.interpolateRgb("#f4f4f2", "#0058a8"), RAISES = d3.interpolateRgb("#f4f4f2", "#c65a00");
  const diverging = (t) => (t < 0.5 ? RAISES(1 - 2 * t) : LOWERS(2 * t - 1));
  const NAMES = {
    sum: "influence (sum)", contrast: "contrast", mean: "influence of one sample (mean)", share: "share of the strongest", lift: "lift",
  };
  // Lines of a chart that have a colour; the others are grey.
  const LINES = 7;

  const data = await tracin.unpacked("chart-data");
  const shown = (language) => data.languages[language].shown;

  // Languages in the order of figures: related ones side by side.
  const order = Object.entries(data.languages).flatMap(([name, { shown }]) => [name, shown]);
  const inOrder = (names) => order.filter((name) => names.includes(name));

  // What can be shown: name -> measure and column of the cells.
  const views = { sum: ["sum", "value"], contrast: ["sum", "contrast"], mean: ["mean", "value"], share: ["share", "value"], lift: ["share", "lift"] };
  const possible = Object.keys(views).filter((name) => data.measures[views[name][0]]?.cells[views[name][1]]);

  function cellsOf(name) {
    const [measure, column] = views[name], { cells, unit } = data.measures[measure];
    const [low, high] = column === "contrast" ? ["contrast_low", "contrast_high"] : column === "lift" ? [] : ["low", "high"];
    return data.pairs.map(([probe, train, own], index) => {
      const value = cells[column][index], from = cells[low]?.[index] ?? null, to = cells[high]?.[index] ?? null;
      const known = from === null ? "" : ` [${number(from)}, ${number(to)}]`;
      const chance = measure === "share" && column === "value" ? `; chance ${number(cells.null?.[index])}` : "";
      return {
        probe: shown(probe), train: shown(train), value, own, keys: [probe, train],
        clear: measure !== "share" && from !== null && (from > 0 || to < 0),
        said: `${shown(train)} → ${shown(probe)}: ${number(value)}${known} ${column === "lift" ? "" : unit}${chance}`.trim(),
      };
    });
  }

  function heatMap(place) {
    const chart = place.querySelector(".canvas"), choice = place.querySelector("[name=shown]");
    fill(choice, possible.map((name) => [name, NAMES[name]]));
    const draw = tracin.keepDrawn(chart, (width) => {
      const named = cellsOf(choice.value), codes = width < 600;  // a narrow screen has no room for names
      const cells = codes ? named.map((cell) => ({ ...cell, probe: cell.keys[0], train: cell.keys[1] })) : named;
      const rows = new Set(cells.map((cell) => cell.probe)).size, columns = new Set(cells.map((cell) => cell.train)).size;
      const margin = 18 + 7 * Math.max(...cells.map((cell) => Math.max(cell.probe.length, cell.train.length))), side = Math.min(52, Math.max(15, (width - margin) / columns));
      const signed = views[choice.value][0] !== "share", lift = choice.value === "lift";
      const plot = Plot.plot({
        width: margin + columns * side + 10, height: margin + 22 + rows * side, marginLeft: margin, marginTop: margin + 16, marginBottom: 4, marginRight: 10,
        ariaLabel: `Heat map: ${NAMES[choice.value]} of each train language (columns) for each probe language (rows)`,
        style: { fontSize: "12px" },
        x: { domain: inOrder(cells.map((cell) => cell.train)), axis: "top", label: "train language", tickRotate: -90, tickSize: 0, padding: 0 },
        y: { domain: inOrder(cells.map((cell) => cell.probe)), label: "probe language", tickSize: 0, padding: 0, labelAnchor: "top" },
        color: signed
          ? { type: "diverging", interpolate: diverging, pivot: 0, symmetric: true, legend: true, label: NAMES[choice.value], unknown: "#999" }
          : lift
            ? { type: "diverging", interpolate: diverging, pivot: 1, legend: true, label: "lift", unknown: "#999" }
            : { type: "linear", interpolate: LOWERS, legend: true, label: NAMES.share, zero: true, unknown: "#999" },
        marks: [
          Plot.cell(cells, { x: "train", y: "probe", fill: "value", inset: 0.5 }),
          Plot.cell(cells.filter((cell) => cell.own), { x: "train", y: "probe", fill: "none", stroke: "currentColor", inset: 0.5 }),
          Plot.dot(cells.filter((cell) => cell.clear), { x: "train", y: "probe", r: Math.min(2.5, side / 8), fill: "#000", stroke: "#fff", strokeWidth: 0.6 }),
          Plot.tip(cells, Plot.pointer({ x: "train", y: "probe", title: "said", maxRadius: 60 })),
        ],
      });
      const canvas = plot.matches("svg") ? plot : plot.querySelector("svg:last-of-type");
      canvas.setAttribute("role", "img");
      plot.addEventListener("click", () => {
        if (plot.value && document.getElementById("explorer")) location.hash = `link/${plot.value.keys.map(encodeURIComponent).join("/")}`;
      });
      chart.replaceChildren(plot);
    });
    choice.addEventListener("change", draw);
  }

  function curves(place) {
    const chart = place.querySelector(".canvas"), language = place.querySelector("[name=language]"), choice = place.querySelector("[name=shown]");
    const { snapshots, values, left_out } = data.curves;
    fill(language, [...new Set(data.pairs.map(([probe]) => probe))].map((name) => [name, shown(name)]));
    fill(choice, Object.keys(values).map((name) => [name, NAMES[name]]));
    const draw = tracin.keepDrawn(chart, (width) => {
      const lines = data.pairs.map(([probe, train], index) => ({ probe, train, index })).filter((line) => line.probe === language.value);
      const last = values[choice.value].at(-1);
      lines.sort((a, b) => Math.abs(last[b.index] ?? 0) - Math.abs(last[a.index] ?? 0));
      const points = lines.flatMap(({ train, index }, rank) =>
        snapshots.map(([epoch, step], at) => ({ epoch, step, train: shown(train), value: values[choice.value][at][index], named: rank < LINES })));
      const named = points.filter((point) => point.named), domain = [...new Set(named.map((point) => point.train))];
      const plot = Plot.plot({
        width, height: Math.min(380, 120 + width / 2), marginLeft: 62, marginRight: 16, style: { fontSize: "12px" },
        ariaLabel: `Curves: ${NAMES[choice.value]} for the probes of ${shown(language.value)}, by optimizer step`,
        x: { label: "optimizer step", ticks: snapshots.length <= 12 ? snapshots.map(([, step]) => step) : 10, tickFormat: (step) => step.toLocaleString("en") }, y: { label: NAMES[choice.value], grid: true, nice: true },
        color: { domain, range: tracin.COLOURS.slice(0, domain.length) },
        symbol: { domain, range: tracin.MARKERS.slice(0, domain.length), legend: true },
        marks: [
          Plot.ruleY([0]),
          Plot.line(points.filter((point) => !point.named), { x: "step", y: "value", z: "train", stroke: "#999", strokeWidth: 0.7 }),
          Plot.line(named, { x: "step", y: "value", z: "train", stroke: "train" }),
          Plot.dot(named, { x: "step", y: "value", stroke: "train", fill: "train", symbol: "train" }),
          Plot.tip(points, Plot.pointer({ x: "step", y: "value", title: (point) => `${point.train}: ${number(point.value)}\nstep ${point.step}, epoch ${point.epoch}` })),
        ],
      });
      chart.replaceChildren(plot);
      const more = lines.length - domain.length;
      const strongest = more > 0 ? ` Coloured: the ${domain.length} train languages that are strongest in the last snapshot; ${more} more are grey.` : "";
      const skipped = left_out > 0 ? ` ${left_out} snapshots between these are left out.` : "";
      const alone = snapshots.length === 1 ? " There is one snapshot, so there is nothing to compare it with." : "";
      place.querySelector("figcaption").textContent =
        `Each snapshot alone; last: ${lines.slice(0, LINES).map(({ train, index }) => `${shown(train)} ${number(last[index])}`).join(", ")}.${strongest}${skipped}${alone}`;
    });
    for (const control of [language, choice]) control.addEventListener("change", draw);
  }

  for (const [name, make] of Object.entries({ "heat-map": heatMap, curves })) {
    const place = document.querySelector(`[data-chart="${name}"]`);
    if (!possible.length) continue; // no value is known
    place.hidden = false;
    make(place);
    const picture = place.parentElement.querySelector(".picture");
    if (picture) picture.open = false;
    place.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  }
})();
