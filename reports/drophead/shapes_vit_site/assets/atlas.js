// The atlas: search, filter, sort and page through all units; the address says what is shown.
"use strict";

(async () => {
  const { el, number } = polysem;
  const run = document.body.dataset.run;
  const PAGE = 24, SHOWN = 6;
  const VIEWS = {
    firing: "Outlined: more than halfway from the unit's mean to its peak in the image.",
    contribution: "Opaque where the image spoke for the unit, over the strongest place; an exemplar without a map is whole.",
    image: "",
  };
  const atlas = await polysem.data(run, "atlas");
  const sprites = await polysem.thumbs.open(run);
  const form = document.getElementById("controls");
  const cards = document.getElementById("cards"), list = document.getElementById("list"), article = document.getElementById("unit");
  const n = atlas.site.length;
  const spoken = atlas.words.map((word) => word.toLowerCase());
  const places = atlas.sites.map((site) => site.name.toLowerCase());
  const rowOf = new Map();
  for (let row = 0; row < n; row++) rowOf.set(`${atlas.site[row]}/${atlas.unit[row]}/${atlas.lower[row]}`, row);
  const siteOf = new Map(atlas.sites.map((site, i) => [site.name, i]));
  if (!atlas.sites.some((site) => site.cells)) form.elements.view.querySelector("[value=contribution]").remove();
  const defaults = Object.fromEntries(new FormData(form));
  let shown = [], page = 0;

  const unitWord = (row) => `${atlas.sites[atlas.site[row]].kind === "head" ? "head" : "unit"} ${atlas.unit[row]}`;
  const named = (row) => (atlas.name && atlas.name[row] >= 0 ? atlas.words[atlas.name[row]] : null);
  const titleOf = (row) => named(row) ?? `${unitWord(row)[0].toUpperCase()}${unitWord(row).slice(1)}`;
  const whereOf = (row) => `${atlas.sites[atlas.site[row]].name} · ${unitWord(row)}${atlas.lower[row] ? " ↓ lowest" : ""}`;
  const addressOf = (row) => `#/${atlas.sites[atlas.site[row]].name}/${atlas.unit[row]}/${atlas.lower[row] ? "lower" : "upper"}`;
  const view = () => form.elements.view.value;

  async function cardOf(row) {
    const shard = Math.floor(row / atlas.shard);
    const found = await polysem.data(run, `units-${String(shard).padStart(4, "0")}`);
    return found[row % atlas.shard];
  }

  function find(site, unit, tail) {
    const row = rowOf.get(`${siteOf.get(site)}/${unit}/${tail === "lower" ? 1 : 0}`);
    if (site === "class") return null;
    return row === undefined ? null : { name: named(row), href: addressOf(row) };
  }

  /** The rows that the controls ask for, in their order. */
  function select(asked) {
    const rows = [];
    const tokens = (asked.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const hits = tokens.map((token) => ({
      token,
      words: spoken.map(/^\d+$/.test(token) ? (word) => word.split(/\W+/).includes(token) : (word) => word.includes(token)),
      sites: places.map((place) => place.includes(token)),
    }));
    const [kind, what] = asked.site ? [asked.site.slice(0, asked.site.indexOf(":")), asked.site.slice(asked.site.indexOf(":") + 1)] : ["", ""];
    const here = atlas.sites.map((site) => !kind || (kind === "site" ? site.name === what : kind === "part" ? site.part === what : String(site.layer) === what));
    const facets = atlas.values.facets;
    for (let row = 0; row < n; row++) {
      if (!here[atlas.site[row]]) continue;
      if (asked.dead !== "all" && (atlas.dead[row] === 1) !== (asked.dead === "only")) continue;
      if (asked.tail && (asked.tail === "lower") !== (atlas.lower[row] === 1)) continue;
      if (asked.cluster && atlas.cluster[row] !== Number(asked.cluster)) continue;
      if (asked.sure === "named" && !(atlas.name[row] >= 0)) continue;
      if (asked.sure === "unnamed" && atlas.name[row] >= 0) continue;
      if (asked.sure === "facets" && !(facets[row] > 1)) continue;
      if (!hits.every((hit) => hit.sites[atlas.site[row]] || String(atlas.unit[row]) === hit.token || atlas.said[row].some((word) => hit.words[word]))) continue;
      rows.push(row);
    }
    const by = atlas.values[asked.sort];
    if (by) {
      const sign = asked.order === "up" ? 1 : -1;
      rows.sort((a, b) => (by[a] === null) - (by[b] === null) || sign * (by[a] - by[b]) || a - b);
    } else if (asked.order === "down" && asked.sort === "") rows.sort((a, b) => a - b);
    return rows;
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      fill(entry.target);
    }
  }, { rootMargin: "200px" });

  async function fill(item) {
    const row = item.row_;
    const card = await cardOf(row);
    const made = polysem.card.exemplars(atlas, sprites, row, card, SHOWN, view());
    item.querySelector(".thumbs").replaceChildren(...made.canvases);
    if (card.h) item.querySelector(".spark").replaceChildren(polysem.card.histogram(card, 120, 28, atlas.lower[row] === 1));
    made.draw();
  }

  function tile(row, asked) {
    const score = atlas.scores.find((one) => one.name === asked.sort);
    const item = el("li", {}, el("a.card", { href: addressOf(row) },
      el("div.thumbs", { "aria-hidden": "true" }),
      el("h2", {}, titleOf(row)),
      el("p.where", {}, whereOf(row)),
      el("p.line", {}, score ? el("span", {}, `${score.title} `, el("b.number", {}, number(atlas.values[score.name][row]))) : el("span"), el("span.spark", { "aria-hidden": "true" })),
      atlas.dead[row] ? el("p.flag", {}, "dead") : null));
    item.row_ = row;
    watcher.observe(item);
    return item;
  }

  function pager() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    const button = (text, to, label) => {
      const made = el("button", { type: "button", "aria-label": label, disabled: to < 0 || to >= pages || to === page }, text);
      made.addEventListener("click", () => { page = to; keep(); render(); list.querySelector(".count").scrollIntoView({ block: "start" }); cards.querySelector("a")?.focus({ preventScroll: true }); });
      return made;
    };
    document.getElementById("pager").replaceChildren(...(pages > 1 ? [
      button("«", 0, "First page"), button("‹", page - 1, "Previous page"),
      el("span.number", {}, `${(page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`),
      button("›", page + 1, "Next page"), button("»", pages - 1, "Last page")] : []));
  }

  let asked = defaults;
  function render() {
    watcher.disconnect();
    cards.replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map((row) => tile(row, asked)));
    document.getElementById("count").textContent = shown.length ? `${shown.length.toLocaleString("en")} of ${n.toLocaleString("en")}` : "No unit answers to all of this.";
    const score = atlas.scores.find((one) => one.name === asked.sort);
    document.getElementById("sort-meaning").textContent = score ? `${score.title}: ${score.meaning}.` : "";
    pager();
  }

  /** Put what is asked for into the address, so that it can be kept and sent. */
  function keep() {
    const said = new URLSearchParams();
    for (const [name, value] of Object.entries(asked)) if (value !== defaults[name]) said.set(name, value);
    if (page) said.set("page", page + 1);
    history.replaceState(null, "", `#${said}`);
  }

  function choose(keepPage) {
    asked = Object.fromEntries(new FormData(form));
    shown = select(asked);
    page = keepPage ? Math.min(page, Math.max(0, Math.ceil(shown.length / PAGE) - 1)) : 0;
    render();
  }

  let drawn = null;
  async function openUnit(name, unit, tail) {
    const row = rowOf.get(`${siteOf.get(name)}/${unit}/${tail === "lower" ? 1 : 0}`);
    list.hidden = true;
    article.hidden = false;
    const back = el("a.back", { href: lastList }, "← All units");
    if (row === undefined) { article.replaceChildren(back, el("h1", {}, "There is no such unit")); return; }
    const card = await cardOf(row);
    const at = shown.indexOf(row);
    const step = (to, text, rel) => (at >= 0 && shown[to] !== undefined ? el("a", { href: addressOf(shown[to]), rel }, text) : null);
    const twin = rowOf.get(`${atlas.site[row]}/${atlas.unit[row]}/${atlas.lower[row] ? 0 : 1}`);
    const group = atlas.cluster && atlas.cluster[row] >= 0 ? el("a", { href: `#cluster=${atlas.cluster[row]}` }, `Group ${atlas.cluster[row]}`) : null;
    const heading = el("h1", { tabindex: "-1" }, titleOf(row));
    const picture = el("select", { id: "unit-view" }, [...form.elements.view.options].map((option) => el("option", { value: option.value, selected: option.value === view() }, option.textContent)));
    picture.addEventListener("change", () => { form.elements.view.value = picture.value; article.querySelector("#view-note").textContent = VIEWS[view()]; drawn.draw(); });
    const where = el("p.where", {}, whereOf(row), group ? [" · ", group] : null, twin !== undefined ? [" · ", el("a", { href: addressOf(twin) }, atlas.lower[row] ? "its highest values" : "its lowest values")] : null);
    const other = el("p.field", {}, el("label", { for: "unit-view" }, "Pictures"), picture, el("span.note", { id: "view-note" }, VIEWS[view()]));
    drawn = polysem.card.build(atlas, sprites, row, card, { view, find, heading, where, other: atlas.dead[row] ? null : other });
    article.replaceChildren(el("nav.steps", { "aria-label": "Units" }, back, step(at - 1, "‹ Previous", "prev"), step(at + 1, "Next ›", "next")), drawn.node);
    document.title = `${titleOf(row)} · ${whereOf(row)}`;
    drawn.draw();
    window.scrollTo(0, 0);
    heading.focus({ preventScroll: true });
  }

  const title = document.title;
  let lastList = "#";
  function follow() {
    const hash = decodeURIComponent(location.hash.slice(1));
    if (hash.startsWith("/")) {
      const [, site, unit, tail] = hash.split("/");
      if (!shown.length) shown = select(asked = Object.fromEntries(new FormData(form)));
      openUnit(site, unit, tail);
      return;
    }
    const said = new URLSearchParams(location.hash.slice(1));
    lastList = location.hash || "#";
    for (const [name, value] of Object.entries(defaults)) if (form.elements[name]) form.elements[name].value = said.get(name) ?? value;
    page = Math.max(0, Number(said.get("page") ?? 1) - 1) || 0;
    document.title = title;
    article.hidden = true;
    list.hidden = false;
    choose(true);
  }

  let waiting;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { choose(event.target.name === "view"); keep(); lastList = location.hash || "#"; }, event.target.type === "search" ? 120 : 0);
  });
  document.addEventListener("keydown", (event) => {
    if (article.hidden || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
    if (event.key === "ArrowLeft") article.querySelector("[rel=prev]")?.click();
    if (event.key === "ArrowRight") article.querySelector("[rel=next]")?.click();
    if (event.key === "Escape") location.hash = lastList;
  });
  polysem.onTheme(() => (article.hidden ? render() : drawn?.draw()));
  window.addEventListener("hashchange", follow);
  follow();
  document.documentElement.dataset.ready = "atlas";
})();
