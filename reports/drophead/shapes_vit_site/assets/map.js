// The feature map: a dot a face; hovering shows its name and exemplars, clicking opens its card.
"use strict";

(async () => {
  const node = document.getElementById("map");
  if (!node) { document.documentElement.dataset.ready = "map"; return; }
  const { el, number } = polysem;
  const run = document.body.dataset.run;
  const atlas = await polysem.data(run, "atlas"), places = await polysem.data(run, "map");
  const sprites = await polysem.thumbs.open(run);
  const form = document.getElementById("controls"), box = document.getElementById("hover");
  const link = [...document.querySelectorAll(".top nav a")].map((a) => a.getAttribute("href")).find((href) => href.startsWith("atlas"));
  // the strong hues of Okabe and Ito's palette and softer ones after them
  const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b61c4", "#8c6d31", "#3f8f8f", "#b5446e", "#7f9f3f", "#5f7fa8"];
  const webgl = (() => { try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch { return false; } })();
  const words = atlas.words.map((word) => word.toLowerCase());

  function marker(by) {
    const size = places.row.length > 3000 ? 4 : 6;
    if (by === "group") return { size, color: places.row.map((row) => (atlas.cluster[row] < 0 ? polysem.colour("line") : HUES[atlas.cluster[row] % HUES.length])) };
    const values = by === "site" ? places.row.map((row) => atlas.site[row]) : places.row.map((row) => atlas.values[by][row]);
    return { size, color: values, colorscale: "Viridis", showscale: true, colorbar: { thickness: 12, outlinewidth: 0, title: { text: by === "site" ? "site, first to last" : atlas.scores.find((one) => one.name === by).title, side: "right" } } };
  }

  function hit() {
    const tokens = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (!tokens.length) return null;
    return places.row.map((row) => tokens.every((token) => atlas.sites[atlas.site[row]].name.includes(token) || atlas.said[row].some((word) => words[word].includes(token))));
  }

  async function draw() {
    const found = hit();
    document.getElementById("found").textContent = found ? `${found.filter(Boolean).length.toLocaleString("en")} of ${places.row.length.toLocaleString("en")} found` : "";
    const dots = marker(form.elements.colour.value);
    dots.opacity = found ? found.map((yes) => (yes ? 1 : 0.07)) : 0.85;
    await polysem.charts.draw(node, {
      data: [{ type: webgl ? "scattergl" : "scatter", mode: "markers", x: places.x, y: places.y, marker: dots, hoverinfo: "none" }],
      layout: { xaxis: { visible: false }, yaxis: { visible: false, scaleanchor: "x" }, margin: { l: 5, r: 5, t: 30, b: 5 }, hovermode: "closest", dragmode: "pan" },
    });
  }

  const nameOf = (row) => (atlas.name && atlas.name[row] >= 0 ? atlas.words[atlas.name[row]] : `Unit ${atlas.unit[row]}`);
  let over = -1;
  async function show(event) {
    const point = event.points[0], row = places.row[point.pointNumber];
    over = row;
    const shard = await polysem.data(run, `units-${String(Math.floor(row / atlas.shard)).padStart(4, "0")}`);
    if (over !== row) return;
    const made = polysem.card.exemplars(atlas, sprites, row, shard[row % atlas.shard], 6, "firing");
    const by = form.elements.colour.value, score = atlas.scores.find((one) => one.name === by);
    box.replaceChildren(el("div.thumbs", {}, made.canvases), el("strong", {}, nameOf(row)),
      el("p.where", {}, `${atlas.sites[atlas.site[row]].name} · ${atlas.unit[row]}${atlas.lower[row] ? " ↓ lowest" : ""}`),
      score ? el("p.where", {}, `${score.title} ${number(atlas.values[by][row])}`) : "",
      atlas.cluster[row] >= 0 ? el("p.where", {}, `Group ${atlas.cluster[row]}`) : "");
    const frame = node.getBoundingClientRect();
    const x = event.event.clientX - frame.left, y = event.event.clientY - frame.top;
    box.hidden = false;
    box.style.left = `${Math.max(0, x + 16 + box.offsetWidth > frame.width ? x - 16 - box.offsetWidth : x + 16)}px`;
    box.style.top = `${Math.min(Math.max(0, y - 40), Math.max(0, frame.height - box.offsetHeight))}px`;
    made.draw();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", draw);
  await draw();
  node.on("plotly_hover", show);
  node.on("plotly_unhover", () => { over = -1; box.hidden = true; });
  node.on("plotly_click", (event) => {
    const row = places.row[event.points[0].pointNumber];
    location.href = `${link}#/${atlas.sites[atlas.site[row]].name}/${atlas.unit[row]}/${atlas.lower[row] ? "lower" : "upper"}`;
  });
  polysem.onTheme(draw);
  document.documentElement.dataset.ready = "map";
})();
