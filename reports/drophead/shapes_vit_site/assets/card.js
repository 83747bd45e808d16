// The card of one unit: its exemplars, names, facets, distribution, classes, scores and neighbours.
"use strict";

polysem.card = (() => {
  const { el, svg, number, percent } = polysem;

  /** What the overlay of an exemplar needs, for the view chosen; null for the plain image. */
  function over(atlas, row, card, rank, view) {
    const site = atlas.sites[atlas.site[row]];
    const hue = atlas.lower[row] ? "#0072b2" : "#d55e00"; // the same in both themes: it lies on the image
    if (view === "contribution" && card.c && rank < (card.r ?? Infinity)) {
      return { kind: "contribution", text: card.c, rank, grid: site.cells };
    }
    if (view === "firing" && card.m) return { kind: "firing", text: card.m, rank, grid: site.grid, hue };
    return null;
  }

  /** Canvases of a unit's first exemplars, with a function that draws them. */
  function exemplars(atlas, sprites, row, card, most, view) {
    const canvases = card.i.slice(0, most).map((slot, rank) => {
      const said = polysem.thumbs.caption(sprites, slot);
      return polysem.thumbs.canvas(sprites, slot, `Exemplar ${rank + 1}${said ? `, ${said}` : ""}, activation ${number(card.v[rank])}`);
    });
    const draw = () => canvases.forEach((canvas, rank) =>
      polysem.thumbs.draw(canvas, sprites, card.i[rank], over(atlas, row, card, rank, view)));
    return { canvases, draw };
  }

  /** A histogram as one path; ticks below are the exemplars. */
  function histogram(card, width, height, lower, ticks = false) {
    const [low, high, ...counts] = card.h;
    const most = Math.max(...counts), step = (high - low) / counts.length;
    // counts are of a sample of the images, and exemplars may lie beyond it
    const from = ticks ? Math.min(low, ...card.v) : low, to = ticks ? Math.max(high, ...card.v) : high;
    const at = (value) => (to > from ? ((value - from) / (to - from)) * width : width / 2);
    const foot = ticks ? height - 8 : height;
    let path = `M${at(low).toFixed(1)} ${foot}`;
    counts.forEach((count, i) => {
      const y = foot - Math.sqrt(count / most) * (foot - 2); // roots, or a heavy tail is not seen
      path += `V${y.toFixed(1)}H${(high > low ? at(low + (i + 1) * step) : ((i + 1) * width) / counts.length).toFixed(1)}`;
    });
    const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: `histogram ${lower ? "lower" : "upper"}`, role: "img", preserveAspectRatio: "none",
      "aria-label": `Distribution over images from ${number(low)} to ${number(high)}` },
      svg("path", { d: `${path}V${foot}Z` }));
    if (ticks) {
      for (const value of card.v) {
        const x = at(value);
        drawn.append(svg("line", { x1: x, x2: x, y1: foot + 2, y2: height }));
      }
    }
    return drawn;
  }

  const section = (title, note, ...children) => el("section", {}, el("h3", {}, title), note ? el("p.note", {}, note) : null, children);

  function bars(rows, lower) {
    const values = rows.map((row) => row.value);
    const low = Math.min(0, ...values), high = Math.max(0, ...values), width = high - low || 1;
    return el("ul.bars", {}, rows.map((row) => el("li", {},
      el("span.name", { title: row.name }, row.name),
      el("span.rail", { "aria-hidden": "true" }, el(`span.bar${lower ? ".lower" : ""}`, {
        style: `left:${(100 * (Math.min(0, row.value) - low)) / width}%;width:${(100 * Math.abs(row.value)) / width}%`,
      })),
      el("span.number", {}, row.text ?? number(row.value)))));
  }

  function names(atlas, row, card) {
    if (!card.n) return null;
    const fits = atlas.name && atlas.name[row] >= 0;
    return section("Names", fits ? "Best first. p: how often random images find as good a name; AUROC on images held out." : "None of the vocabulary fits; the nearest, with how often random images find as good a name.",
      el("ol.names", {}, card.n.map(([concept, p, auroc], i) => el(i === 0 && fits ? "li.best" : "li", {}, el("span", {}, concept),
        el("span.number", {}, `p ${number(p, 2)}${auroc === null ? "" : `, AUROC ${number(auroc, 2)}`}`)))));
  }

  function facets(atlas, sprites, row, card, view, jobs) {
    if (!card.f) return null;
    const list = el("ol.facets", {}, card.f.map(([share, many, name, ranks], i) => {
      const shown = ranks.filter((rank) => rank < card.i.length).slice(0, 5);
      const canvases = shown.map((rank) => {
        const canvas = polysem.thumbs.canvas(sprites, card.i[rank], `Exemplar ${rank + 1}, in facet ${i + 1}`);
        jobs.push(() => polysem.thumbs.draw(canvas, sprites, card.i[rank], over(atlas, row, card, rank, view())));
        return canvas;
      });
      return el("li", {}, el("p", {}, el("strong", {}, name ?? `Facet ${i + 1}`), ` ${percent(share)} of the activation, ${many} exemplar${many === 1 ? "" : "s"}`),
        el("span.meter", { "aria-hidden": "true" }, el("span", { style: `width:${100 * Math.max(0, share ?? 0)}%` })),
        el("div.strip", {}, canvases));
    }));
    return section(card.f.length > 1 ? `${card.f.length} facets` : "One facet", "Groups that the exemplars fall into, by what they look like.", list);
  }

  function profile(atlas, card, lower) {
    if (!card.k || !card.k.length) return null;
    const rows = card.k.map(([number_, value]) => ({ name: atlas.classes[number_] ?? `class ${number_}`, value }));
    return section("Classes", `Mean activation${atlas.classes.length > rows.length ? ", highest classes" : ""}.`, bars(rows, lower));
  }

  function scores(atlas, row) {
    const rows = atlas.scores.map((score) => {
      const value = atlas.values[score.name][row];
      if (value === null) return null;
      let below = 0, known = 0;
      for (let i = 0; i < atlas.site.length; i++) {
        const other = atlas.values[score.name][i];
        if (atlas.site[i] !== atlas.site[row] || atlas.lower[i] !== atlas.lower[row] || other === null) continue;
        known += 1;
        below += other < value ? 1 : other === value ? 0.5 : 0;
      }
      return el("tr", {}, el("th", { scope: "row" }, score.title, el("span.meaning", { title: score.meaning }, score.meaning.split(/; |, 0 to 1/)[0])), el("td.n", {}, number(value)),
        el("td.n", {}, known > 1 ? percent(below / known) : "–"));
    });
    return section("Scores", null, el("table.scores", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Score"),
      el("th.n", { scope: "col" }, "Value"), el("th.n", { scope: "col", title: "share of the units of this site below it" }, "Above"))), el("tbody", {}, rows)));
  }

  function neighbours(title, note, list, find) {
    if (!list) return null;
    return section(title, note, el("ul.neighbours", {}, list.map(([site, unit, tail, share]) => {
      const known = find(site, unit, tail);
      const where = site === "class" ? `class ${unit}` : `${site} · ${unit}${tail === "lower" ? " ↓" : ""}`;
      const text = known === null ? where : `${known.name ? `${known.name}, ` : ""}${where}`;
      return el("li", {}, known === null ? el("span", {}, text) : el("a", { href: known.href }, text),
        el("span.number", {}, `${number(100 * share, 2)} %`));
    })));
  }

  /** Build the card of a row into a node; `find` resolves a face to its name and link. */
  function build(atlas, sprites, row, card, { view, find, heading, where, other }) {
    const lower = atlas.lower[row] === 1;
    const jobs = [];
    const big = exemplars(atlas, sprites, row, card, Infinity, view());
    jobs.push(() => big.canvases.forEach((canvas, rank) =>
      polysem.thumbs.draw(canvas, sprites, card.i[rank], over(atlas, row, card, rank, view()))));
    const figures = big.canvases.map((canvas, rank) => el("li", {}, el("figure", {}, canvas, el("figcaption", {},
      el("span.rank", {}, String(rank + 1)), el("span.number", {}, number(card.v[rank])),
      el("span.said", { title: card.q[rank] }, polysem.thumbs.caption(sprites, card.i[rank]) || card.q[rank])))));
    const dead = atlas.dead[row] === 1;
    const node = el("div", {},
      heading, where,
      dead ? el("p.note", {}, "Dead: the same value on every image.") : null,
      dead ? null : section(lower ? "Lowest values" : "Highest values", card.i.length ? null : "No image: the unit is above 0 on none.", el("ol.exemplars", {}, figures)),
      other,
      el("div.columns", {},
        names(atlas, row, card),
        facets(atlas, sprites, row, card, view, jobs),
        card.h ? section("Distribution", `Over images, heights as square roots. Ticks: exemplars. ${number(Math.min(card.h[0], ...card.v))} to ${number(Math.max(card.h[1], ...card.v))}.`, histogram(card, 320, 96, lower, true)) : null,
        profile(atlas, card, lower),
        neighbours("Fed by", "Units before it, by their share of its firing.", card.u, find),
        neighbours("Feeds", "Units after it, by its share of their firing.", card.d, find),
        scores(atlas, row)));
    return { node, draw: () => jobs.forEach((job) => job()) };
  }

  return { build, exemplars, histogram };
})();
