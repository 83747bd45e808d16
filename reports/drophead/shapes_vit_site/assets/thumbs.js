// Exemplars from the shared sheets, with where a unit fires or what made it fire laid over them.
"use strict";

polysem.thumbs = (() => {
  const KEPT = 120; // sheets kept decoded
  const sheets = new Map();

  function sheet(src) {
    const known = sheets.get(src);
    if (known) { sheets.delete(src); sheets.set(src, known); return known; }
    const loaded = new Promise((done, failed) => {
      const image = new Image();
      image.onload = () => done(image);
      image.onerror = () => failed(new Error(`${src} is not there`));
      image.src = src;
    });
    sheets.set(src, loaded);
    if (sheets.size > KEPT) sheets.delete(sheets.keys().next().value);
    return loaded;
  }

  /** Levels 0 to 15 of one exemplar, of base64 with two cells a byte. */
  function levels(text, rank, cells) {
    const bytes = atob(text);
    const found = new Float32Array(cells);
    for (let i = 0; i < cells; i++) {
      const at = rank * cells + i;
      const byte = bytes.charCodeAt(at >> 1);
      found[i] = at & 1 ? byte & 15 : byte >> 4;
    }
    return found;
  }

  /** Enlarge a map, bilinear between the centres of cells and constant beyond the outer ones. */
  function enlarged(map, rows, columns, height, width) {
    const found = new Float32Array(height * width);
    for (let y = 0; y < height; y++) {
      const v = Math.min(rows - 1, Math.max(0, ((y + 0.5) * rows) / height - 0.5));
      const top = Math.floor(v), bottom = Math.min(rows - 1, top + 1), down = v - top;
      for (let x = 0; x < width; x++) {
        const u = Math.min(columns - 1, Math.max(0, ((x + 0.5) * columns) / width - 0.5));
        const left = Math.floor(u), right = Math.min(columns - 1, left + 1), along = u - left;
        const above = map[top * columns + left] * (1 - along) + map[top * columns + right] * along;
        const below = map[bottom * columns + left] * (1 - along) + map[bottom * columns + right] * along;
        found[y * width + x] = above * (1 - down) + below * down;
      }
    }
    return found;
  }

  function layer(width, height, paint) {
    const canvas = document.createElement("canvas");
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(width, height);
    paint(pixels.data);
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  /** Dim what does not activate the unit, and outline what does: above half of the way to the peak. */
  function veil(map, width, height, hue) {
    const [red, green, blue] = rgb(hue);
    const inside = (x, y) => map[Math.min(height - 1, Math.max(0, y)) * width + Math.min(width - 1, Math.max(0, x))] >= 7.5;
    return layer(width, height, (data) => {
      for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
        const here = inside(x, y), at = 4 * (y * width + x);
        let edge = false, near = false;
        for (let dy = -2; dy <= 2 && !edge; dy++) for (let dx = -2; dx <= 2; dx++) {
          if (inside(x + dx, y + dy) === here) continue;
          if (here && Math.abs(dx) + Math.abs(dy) <= 2) { edge = true; break; }
          near = near || Math.abs(dx) + Math.abs(dy) <= 2;
        }
        if (edge) data.set([red, green, blue, 255], at);
        else if (!here) data.set(near ? [255, 255, 255, 190] : [0, 0, 0, 105], at);
      }
    });
  }

  /** Opacity: how strongly each place spoke for the unit, over the strongest. */
  const spoken = (map, width, height) => layer(width, height, (data) => {
    for (let i = 0; i < map.length; i++) data[4 * i + 3] = 255 * Math.min(1, Math.max(0, (map[i] - 8) / 5.5)) ** 0.8;
  });

  /**
   * Draw a slot onto a canvas.
   * over: null, or {kind: "firing" | "contribution", text, rank, grid: [rows, columns], hue}.
   */
  async function draw(canvas, sprites, slot, over) {
    const times = Math.max(1, Math.round(96 / Math.max(sprites.width, sprites.height)));
    const width = sprites.width * times, height = sprites.height * times;
    const token = {};
    canvas.job = token;
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext("2d");
    const perSheet = sprites.across * sprites.across;
    const src = sprites.sheets[Math.floor(slot / perSheet)];
    if (!src || sprites.gone.has(slot)) {
      canvas.classList.add("gone");
      return;
    }
    let picture;
    try { picture = await sheet(src); } catch { canvas.classList.add("gone"); return; }
    if (canvas.job !== token) return;
    const cell = slot % perSheet;
    const x = (cell % sprites.across) * sprites.width, y = Math.floor(cell / sprites.across) * sprites.height;
    context.imageSmoothingEnabled = false; // a few pixels are shown as they are
    context.drawImage(picture, x, y, sprites.width, sprites.height, 0, 0, width, height);
    if (!over) return;
    const [rows, columns] = over.grid;
    const small = levels(over.text, over.rank, rows * columns);
    const map = enlarged(small, rows, columns, height, width);
    if (over.kind === "firing") {
      if (small.some((level) => level > 0)) context.drawImage(veil(map, width, height, over.hue), 0, 0);
      return;
    }
    context.globalCompositeOperation = "destination-in";
    context.drawImage(spoken(map, width, height), 0, 0);
    context.globalCompositeOperation = "destination-over";
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, width, height);
    context.globalCompositeOperation = "source-over";
  }

  /** Return the sprites of a run. */
  async function open(run) {
    const sprites = await polysem.data(run, "images");
    sprites.gone ||= new Set(sprites.missing);
    return sprites;
  }

  /** Return what is said of a slot: its class, and what the model took it for. */
  function caption(sprites, slot) {
    const label = sprites.names[sprites.label[slot]], taken = sprites.names[sprites.prediction[slot]];
    if (label === undefined) return taken === undefined ? "" : `→ ${taken}`;
    if (sprites.correct[slot] === 1) return label;
    return taken === undefined ? label : `${label} → ${taken}`;
  }

  /** Make a canvas for a slot, drawn when asked, with words for those who cannot see it. */
  function canvas(sprites, slot, words) {
    const node = polysem.el("canvas.thumb", { role: "img", "aria-label": words, width: sprites.width, height: sprites.height });
    node.slot_ = slot;
    return node;
  }

  return { open, draw, caption, canvas };
})();
