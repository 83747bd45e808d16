// What tests ask of a page, as functions that they evaluate in it.
({
  nameless: () => [...document.querySelectorAll("input, select, button, a[href], canvas[role=img], img, svg[role=img]")]
    .filter((node) => node.checkVisibility() && !node.closest(".modebar-container, [aria-hidden=true]"))
    .filter((node) => !node.labels?.length && !node.textContent.trim() && !node.getAttribute("aria-label") && !node.getAttribute("alt"))
    .map((node) => node.outerHTML),

  links: () => [...document.querySelectorAll("a[href]")].map((a) => a.getAttribute("href").split("#")[0]).filter(Boolean),

  headings: () => [...document.querySelectorAll("h1, h2, h3, h4")].filter((node) => node.checkVisibility()).map((node) => Number(node.tagName[1])),

  // WCAG's ratio of luminances: at least 4.5 for text of common size
  faint: () => {
    const numbers = (text) => text.match(/[\d.]+/g).map(Number);
    const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const ground = (node) => {
      for (let one = node; one; one = one.parentElement) {
        const colour = numbers(getComputedStyle(one).backgroundColor);
        if (colour.length === 3 || colour[3] === 1) return colour;
      }
      return [255, 255, 255];
    };
    const speaks = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    return [...document.querySelectorAll("main *, header *, footer")]
      .filter((node) => !node.closest("svg, [hidden], :disabled") && node.checkVisibility() && speaks(node))
      .filter((node) => {
        const [dark, bright] = [light(numbers(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05) < 4.5;
      }).map((node) => `${node.tagName} ${node.textContent.slice(0, 40)}`);
  },

  // of the cards shown: what `holds` says of the atlas and each row
  rows: (holds) => {
    const atlas = polysem.get("one/atlas");
    return [...document.querySelectorAll("#cards li")].map((li) => new Function("a", "r", `return ${holds}`)(atlas, li.row_));
  },

  places: () => [...document.querySelectorAll("#cards .where")].map((node) => node.textContent),

  // where the first dot of the map is on the screen
  dot: () => {
    const node = document.getElementById("map"), axes = node._fullLayout, frame = node.getBoundingClientRect();
    const [x, y] = [node.data[0].x[0], node.data[0].y[0]];
    return [frame.left + axes.xaxis._offset + axes.xaxis.l2p(x), frame.top + axes.yaxis._offset + axes.yaxis.l2p(y)];
  },

  heads: () => [...document.querySelectorAll("#heads tbody a")].map((a) => a.textContent),

  gains: () => Object.fromEntries(polysem.get("one/heads").heads.map((one) => [`${one.layer}.${one.head}`, one.importance.zero[0]])),

  undrawn: () => [...document.querySelectorAll("[data-chart]")].filter((node) => !node.dataset.drawn).length,

  ground: () => getComputedStyle(document.body).backgroundColor,
})
