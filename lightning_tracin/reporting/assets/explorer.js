// The explorer: a probe with its proponents and opponents, a train sample with whom it helps and harms, and two languages with the
// samples that carry their link. What is shown is in the address (#probe/12, #train/7, #link/de/en), so "back" works, links can be
// kept, and every choice is a plain link.
"use strict";

(async () => {
  const { element, number, fill } = tracin;
  // Samples that a list of matches shows at once, and bars of languages.
  const MATCHES = 40, BARS = 12;

  const frame = document.querySelector("#explorer .explorer"), waiting = document.querySelector("#explorer .waiting");
  if (!frame) return;
  const [data, charts] = await Promise.all([tracin.unpacked("explorer-data"), tracin.unpacked("chart-data")]);
  waiting.hidden = true;
  frame.hidden = false;

  const tables = { probe: data.probes, train: data.train };
  const place = Object.fromEntries(Object.entries(tables).map(([kind, table]) => [kind, new Map(table.index.map((index, at) => [index, at]))]));
  const links = new Map(data.links.map((link) => [JSON.stringify(link.slice(0, 2)), link]));
  const cell = new Map(charts.pairs.map(([probe, train], index) => [JSON.stringify([probe, train]), index]));
  const language = (name) => charts.languages[name]?.shown ?? name;
  const tag = (name) => charts.languages[name]?.tag || null;
  const same = (one, other) => one === other || (tag(one) !== null && tag(one) === tag(other));

  // How often each train sample stands in a list of a probe: those that do so most often come first.
  const often = new Uint32Array(data.train.index.length);
  for (const [samples] of [...data.probes.helped_by, ...data.probes.harmed_by]) for (const at of samples) often[at] += 1;
  const order = {
    probe: [...data.probes.index.keys()],
    train: [...data.train.index.keys()].sort((a, b) => often[b] - often[a] || a - b),
  };

  const textOf = (table, at) => element("div", { class: "text", dir: "auto", lang: tag(table.language[at]) }, table.text[at] || "(no text)");

  function about(kind, at, ...more) {
    const table = tables[kind], label = table.label[at];
    return element("div", { class: "about" },
      element("span", { class: "language" }, language(table.language[at])),
      element("span", {}, `${kind === "probe" ? "probe" : "train sample"} ${table.index[at]}`),
      label === null ? null : element("span", {}, "label ", element("bdi", {}, label)), ...more);
  }

  // "translation" where both samples are of one item.
  function relation(item, name, table, at) {
    if (item < 0 || table.item[at] !== item) return null;
    return element("span", { class: "mark" }, same(name, table.language[at]) ? "same item" : "translation");
  }

  // A list of samples with their scores; `beside` is the sample or null that translations are marked for.
  function strong(title, kind, [samples, scores], sign, beside) {
    const table = tables[kind], largest = Math.max(...scores.map(Math.abs), Number.MIN_VALUE);
    const lines = samples.map((at, rank) => element("li", {},
      element("a", { href: `#${kind}/${table.index[at]}` },
        about(kind, at, element("span", { class: "score" }, number(scores[rank])), beside && relation(beside.item, beside.language, table, at)),
        textOf(table, at),
        element("span", { class: "bar", style: `width: ${(100 * Math.abs(scores[rank] ?? 0)) / largest}%` }))));
    return element("div", {}, element("h3", {}, title),
      lines.length ? element("ol", { class: `strong ${sign}` }, ...lines) : element("p", { class: "note" }, "None."));
  }

  // Bars for the languages with the largest sums; the rest together.
  function bars(values, names, said) {
    const sorted = names.map((name, at) => ({ name: language(name), value: values[at] ?? 0 })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const kept = sorted.slice(0, BARS), rest = sorted.slice(BARS);
    if (rest.length) kept.push({ name: `${rest.length} others`, value: d3.sum(rest, (one) => one.value) });
    const plot = Plot.plot({
      width: 460, height: 34 + 20 * kept.length, style: { fontSize: "12px" }, marginLeft: 14 + 8 * Math.max(...kept.map((one) => one.name.length)), marginRight: 12,
      ariaLabel: `${said}: ${kept.map((one) => `${one.name} ${number(one.value)}`).join(", ")}`,
      x: { axis: "top", label: null, ticks: 4, grid: true }, y: { domain: kept.map((one) => one.name), label: null, tickSize: 0 },
      marks: [
        Plot.barX(kept, { x: "value", y: "name", fill: (one) => (one.value < 0 ? "var(--harms)" : "var(--helps)"), title: (one) => `${one.name}: ${number(one.value)}` }),
        Plot.ruleX([0]),
      ],
    });
    plot.setAttribute("role", "img");
    return element("div", { class: "canvas" }, plot);
  }

  const show = {
    probe(at) {
      const table = data.probes, beside = { item: table.item[at], language: table.language[at] };
      return [
        element("div", { class: "card" }, about("probe", at), textOf(table, at)),
        element("h3", {}, "Train languages: sum of their samples' scores on this probe"),
        bars(table.sums[at], data.train_languages, "Sum of scores by train language"),
        element("div", { class: "lists" },
          strong("Proponents: training on them lowers its loss", "train", table.helped_by[at], "helps", beside),
          strong("Opponents: training on them raises its loss", "train", table.harmed_by[at], "harms", beside)),
      ];
    },
    train(at) {
      const table = data.train, beside = { item: table.item[at], language: table.language[at] };
      return [
        element("div", { class: "card" }, about("train", at), textOf(table, at)),
        element("p", { class: "note" }, `Among the strongest of ${often[at]} probe${often[at] === 1 ? "" : "s"} shown here.`),
        element("div", { class: "lists" },
          strong("Probes that it helps most", "probe", table.helps[at], "helps", beside),
          strong("Probes that it harms most", "probe", table.harms[at], "harms", beside)),
      ];
    },
    link(key) {
      const [probe, train, mass, helping, harming] = links.get(key), at = cell.get(key), { cells, unit } = charts.measures.sum;
      const interval = (low, high) => (cells[low]?.[at] ?? null) === null ? "" : ` [${number(cells[low][at])}, ${number(cells[high][at])}]`;
      const carried = ([, scores]) => mass ? `${Math.round((100 * d3.sum(scores, Math.abs)) / mass)} %` : "an unknown part";
      return [
        element("div", { class: "card" },
          element("div", {}, element("strong", {}, language(train)), " (train) → ", element("strong", {}, language(probe)), " (probes)"),
          element("div", {}, `Influence ${number(cells.value?.[at])}${interval("low", "high")} ${unit === "score" ? "in units of the score" : unit}`),
          element("div", {}, `Contrast ${number(cells.contrast?.[at])}${interval("contrast_low", "contrast_high")}`)),
        element("p", { class: "note" }, `By their mean score on the probes of ${language(probe)}. Of all that samples of ${language(train)} do to these, ` +
          `for good or ill, the samples on the first list do ${carried(helping)}, those on the second ${carried(harming)}.`),
        element("div", { class: "lists" },
          strong("Samples that carry the link", "train", helping, "helps", null),
          strong("Samples that counter it", "train", harming, "harms", null)),
      ];
    },
  };

  const panel = (kind) => document.getElementById(`panel-${kind}`), tab = (kind) => document.getElementById(`tab-${kind}`);

  function open(kind) {
    for (const other of Object.keys(show)) {
      panel(other).hidden = other !== kind;
      tab(other).setAttribute("aria-selected", String(other === kind));
      tab(other).tabIndex = other === kind ? 0 : -1;
    }
  }

  function choose(kind, what) {
    open(kind);
    panel(kind).querySelector(".detail").replaceChildren(...show[kind](what));
    if (kind === "link") {
      const [probe, train] = JSON.parse(what), form = panel(kind).querySelector("form");
      form.elements.probe.value = probe;
      form.elements.train.value = train;
      return;
    }
    panel(kind).querySelectorAll(".found a").forEach((link) => link.setAttribute("aria-current", String(link.hash === `#${kind}/${tables[kind].index[what]}`)));
  }

  // Shows what the address names; false if it names nothing of the explorer.
  function followAddress() {
    const [kind, ...rest] = location.hash.slice(1).split("/");
    if (kind === "link" && rest.length === 2) {
      const key = JSON.stringify(rest.map(decodeURIComponent));
      if (!links.has(key)) return false;
      choose(kind, key);
      return true;
    }
    const at = place[kind]?.get(Number(rest[0]));
    if (at === undefined) return false;
    choose(kind, at);
    return true;
  }

  // The form that finds samples by text or number, language and label.
  function finder(kind) {
    const table = tables[kind], form = panel(kind).querySelector("form"), list = panel(kind).querySelector(".found");
    const names = (column) => [...new Set(column.filter((value) => value !== null))].sort();
    fill(form.elements.language, names(table.language).map((name) => [name, language(name)]));
    const labels = names(table.label);
    fill(form.elements.label, labels.slice(0, 500).map((name) => [name, name]));
    form.elements.label.closest("label").hidden = labels.length < 2 || labels.length > 500;
    const lowered = table.text.map((text) => text.toLowerCase());
    const find = () => {
      const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean), { value: wanted } = form.elements.language, { value: label } = form.elements.label;
      const found = order[kind].filter((at) =>
        (!wanted || table.language[at] === wanted) && (!label || table.label[at] === label) &&
        words.every((word) => lowered[at].includes(word) || String(table.index[at]) === word));
      list.replaceChildren(...found.slice(0, MATCHES).map((at) =>
        element("li", {}, element("a", { href: `#${kind}/${table.index[at]}` }, about(kind, at), textOf(table, at)))));
      const first = found.length > MATCHES ? `; the first ${MATCHES} are listed` : "";
      form.querySelector(".count").textContent = `${found.length.toLocaleString("en")} of ${order[kind].length.toLocaleString("en")}${first}`;
    };
    form.addEventListener("input", find);
    form.addEventListener("submit", (event) => event.preventDefault());
    find();
  }

  for (const kind of Object.keys(tables)) finder(kind);

  const pair = panel("link").querySelector("form");
  fill(pair.elements.probe, [...new Set(data.links.map(([probe]) => probe))].map((name) => [name, language(name)]));
  fill(pair.elements.train, data.train_languages.map((name) => [name, language(name)]));
  pair.addEventListener("submit", (event) => event.preventDefault());
  pair.addEventListener("change", () => {
    location.hash = `link/${[pair.elements.probe.value, pair.elements.train.value].map(encodeURIComponent).join("/")}`;
  });

  const kinds = Object.keys(show);
  for (const [at, kind] of kinds.entries()) {
    tab(kind).addEventListener("click", () => open(kind));
    tab(kind).addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = kinds[(at + by + kinds.length) % kinds.length];
      open(next);
      tab(next).focus();
    });
  }

  if (order.train.length) choose("train", order.train[0]);
  if (data.links.length) choose("link", JSON.stringify((data.links.find(([probe, train]) => !same(probe, train)) ?? data.links[0]).slice(0, 2)));
  choose("probe", order.probe[0]);
  if (followAddress()) document.getElementById("explorer").scrollIntoView();
  window.addEventListener("hashchange", () => {
    if (!followAddress()) return;
    document.querySelector("#explorer .panel:not([hidden]) .detail").focus({ preventScroll: true });
    document.querySelector("#explorer .panel:not([hidden]) .detail").scrollIntoView({ block: "nearest" });
  });
})();
