// What every page shares: data files, theme, and a few helpers. Data never pass through innerHTML.
"use strict";

const polysem = (() => {
  const given = new Map();
  const loading = new Map();

  /** Called by data files: `polysem.give("run/atlas", {...})`. */
  const give = (key, payload) => given.set(key, payload);
  const get = (key) => given.get(key);

  /** Load a script once; resolves when it has run. Pages opened as files may not fetch. */
  function load(src) {
    if (!loading.has(src)) {
      loading.set(src, new Promise((done, failed) => {
        const script = document.createElement("script");
        script.src = src;
        script.onload = () => done();
        script.onerror = () => { loading.delete(src); failed(new Error(`${src} is not there`)); };
        document.head.append(script);
      }));
    }
    return loading.get(src);
  }

  /** Return what a data file of the run holds, loading it first if need be. */
  async function data(run, name) {
    const key = `${run}/${name}`;
    if (!given.has(key)) await load(`data/${run}/${name}.js`);
    return given.get(key);
  }

  /** Make an element: el("a.card", {href: "#"}, "text", child). Attributes that are null are left out. */
  function el(what, attributes = {}, ...children) {
    const [tag, ...classes] = what.split(".");
    const node = document.createElement(tag);
    if (classes.length) node.className = classes.join(" ");
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  }

  /** The same for SVG. */
  function svg(tag, attributes = {}, ...children) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.flat());
    return node;
  }

  /** A number with three significant digits, as on polysem's pictures. */
  function number(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const size = Math.abs(value);
    if (size === 0) return "0";
    const text = Number.isInteger(value) && size < 1e6 ? size.toLocaleString("en")
      : size >= 1e-3 && size < 1e6
        ? Number(size.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: Math.max(0, digits - 1 - Math.floor(Math.log10(size))) })
        : size.toExponential(digits - 1);
    return value < 0 ? `−${text}` : text;
  }

  const percent = (share) => share === null ? "–" : `${Math.round(100 * share)} %`;

  /** Return a colour of the theme as it is now. */
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const listeners = [];
  const dark = () => (document.documentElement.dataset.theme
    || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const onTheme = (listener) => listeners.push(listener);
  const store = { // some browsers refuse storage to files
    read() { try { return localStorage.getItem("polysem-theme"); } catch { return null; } },
    write(value) { try { localStorage.setItem("polysem-theme", value); } catch { /* for this page only */ } },
  };

  const kept = store.read();
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      button.textContent = dark() ? "Light" : "Dark";
      button.setAttribute("aria-label", `${button.textContent} colours`);
    };
    const changed = () => { name(); listeners.forEach((listener) => listener()); };
    button.addEventListener("click", () => {
      const next = dark() ? "light" : "dark";
      document.documentElement.dataset.theme = next;
      store.write(next);
      changed();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
    name();
  });

  return { give, get, load, data, el, svg, number, percent, colour, dark, onTheme };
})();
