// Charts by plotly, whose script is large: loaded when the first chart comes into view.
"use strict";

polysem.charts = (() => {
  const drawn = [];

  /** Put the theme's colours where a figure names them: "--upper", or the scales "--diverging", "--sequential". */
  function coloured(value) {
    if (typeof value === "string" && value.startsWith("--")) {
      const name = value.slice(2);
      if (name === "diverging") return [[0, polysem.colour("lower")], [0.5, polysem.colour("card")], [1, polysem.colour("upper")]];
      if (name === "sequential") return [[0, polysem.colour("faint")], [1, polysem.colour("accent")]];
      return polysem.colour(name);
    }
    if (Array.isArray(value)) return value.length && typeof value[0] === "number" ? value : value.map(coloured);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one)]));
    return value;
  }

  const styled = (figure) => {
    const axis = { gridcolor: polysem.colour("line"), zerolinecolor: polysem.colour("line"), linecolor: polysem.colour("line"), automargin: true };
    const layout = coloured(figure.layout ?? {});
    const axes = Object.fromEntries(Object.keys({ xaxis: 0, yaxis: 0, ...layout }).filter((key) => /^[xy]axis\d*$/.test(key)).map((key) => [key, { ...axis, ...layout[key] }]));
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: polysem.colour("ink") },
      margin: { l: 50, r: 20, t: 30, b: 45 },
      hoverlabel: { bgcolor: polysem.colour("card"), bordercolor: polysem.colour("line"), font: { color: polysem.colour("ink") } },
      ...layout, ...axes,
    };
  };

  async function paint(node, figure) {
    await polysem.load("assets/plotly.min.js");
    await Plotly.react(node, coloured(figure.data), styled(figure), {
      displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    });
    node.querySelector(".modebar-container")?.setAttribute("aria-hidden", "true");
    node.dataset.drawn = "yes";
  }

  /** Draw a figure into a node, now and whenever the theme changes. Returns when it is drawn. */
  async function draw(node, figure) {
    const known = drawn.find((one) => one.node === node);
    if (known) known.figure = figure; else drawn.push({ node, figure });
    await paint(node, figure);
    return node;
  }

  polysem.onTheme(() => drawn.forEach(({ node, figure }) => paint(node, figure)));

  const watcher = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach(({ target }) => {
    watcher.unobserve(target);
    draw(target, JSON.parse(document.getElementById(target.dataset.chart).textContent));
  }), { rootMargin: "150px" });
  document.querySelectorAll("[data-chart]").forEach((node) => watcher.observe(node));

  return { draw };
})();
