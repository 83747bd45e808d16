// Heads: the table of all, and the page of each, opened by #/BLOCK.HEAD.
"use strict";

(async () => {
  const table = document.getElementById("heads");
  if (!table) { document.documentElement.dataset.ready = "heads"; return; }
  const { el, number } = polysem;
  const run = document.body.dataset.run;
  const found = await polysem.data(run, "heads"), sprites = await polysem.thumbs.open(run);
  const all = document.getElementById("all"), article = document.getElementById("head");
  const nameOf = (one) => `${one.layer}.${one.head}`;
  const ways = Object.keys(found.ways);
  const interval = ([, low, high]) => (low === null ? "" : `${number(low)} to ${number(high)}`);

  const columns = [
    { title: "Head", of: (one) => one.layer * 1000 + one.head },
    ...(found.heads.some((one) => one.name) ? [{ title: "Name", of: (one) => one.name ?? "", text: (one) => one.name ?? "" }] : []),
    ...ways.map((way) => ({ title: found.ways[way], of: (one) => one.importance[way][0], text: (one) => number(one.importance[way][0]), hint: (one) => interval(one.importance[way]) })),
    ...found.profile.map((title, i) => ({ title, of: (one) => one.profile[i], text: (one) => number(one.profile[i]) })),
  ];
  let by = 0, down = false;
  function fill() {
    const rows = [...found.heads].sort((a, b) => {
      const [x, y] = [columns[by].of(a), columns[by].of(b)];
      return (x === null) - (y === null) || (down ? -1 : 1) * (x > y ? 1 : x < y ? -1 : 0);
    });
    table.replaceChildren(el("thead", {}, el("tr", {}, columns.map((column, i) => {
      const button = el("button.quiet", { type: "button" }, column.title, i === by ? (down ? " ↓" : " ↑") : "");
      button.addEventListener("click", () => { down = i === by ? !down : i > 0; by = i; fill(); table.querySelectorAll("thead button")[i].focus(); });
      return el(i ? "th.n" : "th", { scope: "col", "aria-sort": i === by ? (down ? "descending" : "ascending") : null }, button);
    }))), el("tbody", {}, rows.map((one) => el("tr", {}, columns.map((column, i) => (i === 0
      ? el("th", { scope: "row" }, el("a", { href: `#/${nameOf(one)}` }, nameOf(one)))
      : el("td.n", { title: column.hint?.(one) || null }, column.text(one))))))));
  }

  const link = (partner) => (partner ? [el("a", { href: `#/${partner[0]}.${partner[1]}` }, `${partner[0]}.${partner[1]}`), ` (${number(partner[2])})`] : "none");

  function images(one, kind, title, note, jobs) {
    const slots = one.slots[kind];
    if (!slots.length) return null;
    return el("section", {}, el("h3", {}, title), el("p.note", {}, note), el("ol.exemplars", {}, slots.map((slot, rank) => {
      const said = polysem.thumbs.caption(sprites, slot);
      const canvas = polysem.thumbs.canvas(sprites, slot, `${said || "image"}, cost ${number(one.gains[kind][rank])} without the head; bright where it looks`);
      jobs.push(() => polysem.thumbs.draw(canvas, sprites, slot, { kind: "contribution", text: one.maps, rank: kind * found.most + rank, grid: found.grid }));
      return el("li", {}, el("figure", {}, canvas, el("figcaption", {}, el("span.rank", {}, String(rank + 1)), el("span.number", {}, number(one.gains[kind][rank])), el("span.said", {}, said))));
    })));
  }

  let drawn = () => {};
  function open(name) {
    const at = found.heads.findIndex((one) => nameOf(one) === name), one = found.heads[at];
    all.hidden = true;
    article.hidden = false;
    const back = el("a.back", { href: "#" }, "← All heads");
    if (!one) { article.replaceChildren(back, el("h1", {}, "There is no such head")); return; }
    const jobs = [];
    const step = (other, text) => (other ? el("a", { href: `#/${nameOf(other)}` }, text) : null);
    const heading = el("h1", { tabindex: "-1" }, `Block ${one.layer}, head ${one.head}`);
    const row = (title, value, more) => el("tr", {}, el("th", { scope: "row" }, title), el("td.n", {}, value), el("td", {}, more ?? ""));
    article.replaceChildren(el("nav.steps", { "aria-label": "Heads" }, back, step(found.heads[at - 1], "‹ Previous"), step(found.heads[at + 1], "Next ›")),
      heading, el("p.where", {}, one.name ? `${one.name} · ` : "", "fights most with ", link(one.rival), " · is most covered for by ", link(one.double)),
      images(one, 0, "Needs it", "Images whose cost rises most without the head; bright where it looks.", jobs) ?? "",
      images(one, 1, "Better without", "Images whose cost falls most without the head.", jobs) ?? "",
      el("div.columns", {},
        el("section", {}, el("h3", {}, "Importance"), el("p.note", {}, "Rise of the cost, and its 95 % interval over images."),
          el("table", {}, el("tbody", {}, ways.map((way) => row(found.ways[way], number(one.importance[way][0]), interval(one.importance[way])))))),
        one.classes.length ? el("section", {}, el("h3", {}, "Classes that need it most"), el("table", {}, el("tbody", {}, one.classes.map(([title, ...values]) => row(title, number(values[0]), interval(values)))))) : null,
        el("section", {}, el("h3", {}, "What it does"), el("table", {}, el("tbody", {}, found.profile.map((title, k) => (one.profile[k] === null ? null : row(title, number(one.profile[k])))))))));
    jobs.forEach((job) => job());
    drawn = () => jobs.forEach((job) => job());
    window.scrollTo(0, 0);
    heading.focus({ preventScroll: true });
  }

  function follow() {
    const hash = decodeURIComponent(location.hash.slice(1));
    if (hash.startsWith("/")) { open(hash.slice(1)); return; }
    article.hidden = true;
    all.hidden = false;
  }
  polysem.onTheme(() => drawn());
  window.addEventListener("hashchange", follow);
  fill();
  follow();
  document.documentElement.dataset.ready = "heads";
})();
