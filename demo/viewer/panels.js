// The viewer's panels: laying them out, drawing them, zooming, panning, and what lies under the pointer.

// ---- Panels -----------------------------------------------------------------------------------------------------

/** One model: the bare picture beside it. Several: each, then where they differ. */
function buildPanels() {
  const { scene } = state;
  const plans = scene.models.map((m, index) => ({ kind: "model", index, title: m.title }));
  if (plans.length === 1) plans.unshift({ kind: "picture", title: "Picture" });
  if (scene.heat) plans.push({ kind: "heat", title: "Where they differ" });
  sizes.disconnect();
  state.panels = plans.map(buildPanel);
  ui.panels.replaceChildren(...state.panels.map((p) => p.figure));
  // Narrow screens show one panel, chosen here; on wide ones the style sheet shows all.
  const group = `panel-${Math.random().toString(36).slice(2)}`;
  const chosen = scene.models.length === 1 ? 1 : 0;
  ui.tabs.replaceChildren(...state.panels.map((panel, i) => {
    const radio = make("input", { type: "radio", name: group, checked: i === chosen });
    radio.addEventListener("change", () => state.panels.forEach((p) => p.figure.classList.toggle("on", p === panel)));
    const label = make("label");
    label.append(radio, make("span", {}, panel.title));
    return label;
  }));
  state.panels[chosen].figure.classList.add("on");
}

function buildPanel(plan) {
  const figure = make("figure", { className: "v-panel" });
  const caption = make("figcaption");
  const said = make("span", { className: "v-said" });
  const stage = make("div", { className: "v-stage", tabIndex: 0 });
  const canvas = make("canvas");
  canvas.setAttribute("role", "img");
  stage.setAttribute("role", "group");
  stage.setAttribute("aria-label", `${plan.title}: plus and minus zoom, arrows move, 0 fits, space hides the mask`);
  const light = plan.kind === "model" ? make("span") : null;
  const asked = light && make("span", { className: "v-asked" });
  caption.append(make("strong", {}, plan.title), ...(light ? [light] : []), said);
  stage.append(canvas, ...(asked ? [asked] : []));
  figure.append(caption, stage);
  const panel = { ...plan, figure, stage, canvas, said, light, asked, width: 0, height: 0 };
  followPointer(panel);
  stage.addEventListener("keydown", (event) => onKey(panel, event));
  stage.addEventListener("keyup", (event) => event.key === " " && peek(false));
  stage.addEventListener("blur", () => peek(false));
  sizes.observe(stage);
  stage.panel = panel;
  return panel;
}

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const panel = target.panel;
    const density = window.devicePixelRatio || 1;
    panel.width = target.clientWidth;
    panel.height = target.clientHeight;
    panel.canvas.width = Math.round(panel.width * density);
    panel.canvas.height = Math.round(panel.height * density);
  }
  redraw();
});

// ---- Drawing ----------------------------------------------------------------------------------------------------

let frame = 0;
function redraw() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => state.scene && state.panels.forEach(drawPanel));
}

function repaintPicture() {
  const { scene } = state;
  const gain = scene.picture.channels === 3 ? 100 / Number(ui.bright.value) : 1;
  const [low, high] = state.window;
  scene.base = paintPicture(scene, low, low + (high - low) * gain);
  redraw();
}

/** From the picture's pixels to a panel's: scale in x and y, and where pixel 0, 0 is. */
function placement(panel) {
  const { width, height, tall } = state.scene;
  const fit = Math.min(panel.width / width, panel.height / (height * tall));
  const x = fit * state.view.zoom;
  const y = x * tall;
  return { x, y, left: panel.width / 2 - state.view.x * x, top: panel.height / 2 - state.view.y * y };
}

function drawPanel(panel) {
  if (!panel.width || !state.scene.base) return; // a tab that is not shown
  const { scene } = state;
  const density = panel.canvas.width / panel.width;
  const place = placement(panel);
  const context = panel.canvas.getContext("2d");
  const matrix = new DOMMatrix([place.x, 0, 0, place.y, place.left, place.top]);
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, panel.width, panel.height);
  context.save();
  context.transform(place.x, 0, 0, place.y, place.left, place.top);
  context.imageSmoothingEnabled = place.x * density < 3; // then pixels are meant to be seen
  context.imageSmoothingQuality = "high";
  context.drawImage(scene.base, 0, 0);
  const marked = state.marks && !state.peek;
  if (marked && panel.kind === "heat") drawHeat(context);
  if (marked && panel.kind === "model" && ui.mode.value !== "outline") {
    context.globalAlpha = Number(ui.opacity.value) / 100;
    context.drawImage(state.layers[panel.index].fill, 0, 0);
  }
  context.restore();
  if (marked && panel.kind === "model" && ui.mode.value !== "fill") drawLines(context, panel, matrix);
  if (marked && scene.truthLines && state.truthShown) drawTruth(context, matrix);
  drawScaleBar(context, panel, place);
  drawCross(context, panel, place);
  if (marked) drawPrompt(context, place); // over the cross, which would make a plus of a minus
}

function drawHeat(context) {
  const { width, height, heat } = state.scene;
  context.fillStyle = "rgba(0, 0, 0, 0.55)";
  context.fillRect(0, 0, width, height);
  context.drawImage(heat.canvas, 0, 0);
}

/** Strokes a line of the picture's pixels with a width in screen pixels, over a dark one that keeps it visible. */
function stroke(context, lines, matrix, style, width) {
  const path = new Path2D();
  path.addPath(lines, matrix);
  context.setLineDash([]);
  context.strokeStyle = "rgba(0, 0, 0, 0.55)";
  context.lineWidth = width + 1.6;
  context.stroke(path);
  context.setLineDash(style.dash ?? []);
  context.strokeStyle = style.colour;
  context.lineWidth = width;
  context.stroke(path);
  context.setLineDash([]);
}

function drawLines(context, panel, matrix) {
  const model = state.scene.models[panel.index];
  const layer = state.layers[panel.index];
  layer.lines.forEach((lines, k) => {
    if (layer.shown[k]) stroke(context, lines, matrix, { colour: css(colour(model.names[k])) }, 1.8);
  });
}

function drawTruth(context, matrix) {
  for (const lines of state.scene.truthLines) stroke(context, lines, matrix, { colour: "#fff", dash: [5, 4] }, 1.5);
}

function drawScaleBar(context, panel, place) {
  const { spacing_mm: spacing, size, width } = state.scene;
  if (!spacing) return;
  const pxPerMm = (place.x * width) / (size[0] * spacing[1]);
  const length = roundLength((panel.width * 0.25) / pxPerMm);
  const [x, y] = [10, panel.height - 10];
  for (const [style, line] of [["#000", 5], ["#fff", 2]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + length * pxPerMm, y);
    context.stroke();
  }
  context.font = "12px system-ui, sans-serif";
  context.lineWidth = 3;
  context.strokeStyle = "#000";
  context.strokeText(`${length} mm`, x, y - 6);
  context.fillStyle = "#fff";
  context.fillText(`${length} mm`, x, y - 6);
}

/** Where the pointer is in another panel. */
function drawCross(context, panel, place) {
  const { hover } = state;
  if (!hover || hover.panel === panel) return;
  const [x, y] = [place.left + hover.x * place.x, place.top + hover.y * place.y];
  for (const [style, line] of [["#000", 3], ["#fff", 1]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x - 7, y);
    context.lineTo(x + 7, y);
    context.moveTo(x, y - 7);
    context.lineTo(x, y + 7);
    context.stroke();
  }
}

// ---- Moving about -----------------------------------------------------------------------------------------------

function setView(view) {
  const { scene, panels } = state;
  const panel = panels.find((p) => p.width);
  if (!panel) return;
  const fit = Math.min(panel.width / scene.width, panel.height / (scene.height * scene.tall));
  const zoom = clamp(view.zoom, 1, Math.max(8, 32 / fit)); // up to 32 screen pixels per pixel
  // The picture's edge stays at the panel's, or the picture in the middle where it is smaller.
  const half = [panel.width / 2 / (fit * zoom), panel.height / 2 / (fit * scene.tall * zoom)];
  const inside = (at, reach, size) => (reach * 2 >= size ? size / 2 : clamp(at, reach, size - reach));
  state.view = { zoom, x: inside(view.x, half[0], scene.width), y: inside(view.y, half[1], scene.height) };
  panels.forEach((p) => p.stage.classList.toggle("zoomed", zoom > 1));
  redraw();
}

/** Zooms so that what lies under a point of the panel stays there. */
function zoomAt(panel, at, factor) {
  const before = placement(panel);
  const [x, y] = [(at.x - before.left) / before.x, (at.y - before.top) / before.y];
  const zoom = state.view.zoom * factor;
  const scale = { x: before.x * factor, y: before.y * factor };
  setView({ zoom, x: x - (at.x - panel.width / 2) / scale.x, y: y - (at.y - panel.height / 2) / scale.y });
}

const zoomMiddle = (factor) => setView({ ...state.view, zoom: state.view.zoom * factor });
const fitView = () => setView({ zoom: 1, x: 0, y: 0 });

function panBy(panel, dx, dy) {
  const place = placement(panel);
  setView({ zoom: state.view.zoom, x: state.view.x - dx / place.x, y: state.view.y - dy / place.y });
}

function onKey(panel, event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const far = 40;
  const actions = {
    "+": () => zoomMiddle(1.25),
    "=": () => zoomMiddle(1.25),
    "-": () => zoomMiddle(0.8),
    0: fitView,
    ArrowLeft: () => panBy(panel, far, 0),
    ArrowRight: () => panBy(panel, -far, 0),
    ArrowUp: () => panBy(panel, 0, far),
    ArrowDown: () => panBy(panel, 0, -far),
    PageUp: () => stepSlice(-1),
    PageDown: () => stepSlice(1),
    " ": () => peek(true),
    Escape: () => (prompting.box ? chooseTool("box") : chooseTool("look")),
  };
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

function peek(on) {
  if (state.peek === on) return;
  state.peek = on;
  redraw();
}

/** Drag moves, or draws a box; two fingers zoom, the right button drags the window; a click asks, if it is to. */
function followPointer(panel) {
  const { stage } = panel;
  const down = new Map();
  let moved = 0;
  const point = (event) => {
    const box = stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  stage.addEventListener("pointerdown", (event) => {
    if (down.size === 0) moved = 0;
    if (down.size === 0 && event.button === 0 && stage.dataset.tool === "box") startBox(panel, point(event));
    else prompting.box = null; // a second finger zooms
    down.set(event.pointerId, { ...point(event), button: event.button });
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const at = point(event);
    readOut(panel, at);
    const from = down.get(event.pointerId);
    if (!from) return;
    const [dx, dy] = [at.x - from.x, at.y - from.y];
    moved += Math.abs(dx) + Math.abs(dy);
    const other = [...down].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const spread = (p) => Math.max(1, Math.hypot(p.x - other.x, p.y - other.y));
      panBy(panel, dx / 2, dy / 2);
      zoomAt(panel, { x: (at.x + other.x) / 2, y: (at.y + other.y) / 2 }, spread(at) / spread(from));
    } else if (from.button === 2) dragWindow(dx, dy);
    else if (prompting.box?.panel === panel) dragBox(panel, at);
    else panBy(panel, dx, dy);
    down.set(event.pointerId, { ...at, button: from.button });
  });
  const lift = (event) => {
    const from = down.get(event.pointerId);
    down.delete(event.pointerId);
    if (event.type !== "pointerup") prompting.box = null;
    else if (prompting.box?.panel === panel) endBox();
    else if (from && stage.dataset.tool === "point" && moved < (event.pointerType === "touch" ? 12 : 4)) {
      askPoint(panel, point(event), event);
    }
  };
  stage.addEventListener("pointerup", lift);
  stage.addEventListener("pointercancel", lift);
  stage.addEventListener("pointerleave", () => readOut(panel, null));
  stage.addEventListener("contextmenu", (event) => {
    if (moved > 3 || stage.dataset.tool !== "look") event.preventDefault();
  });
  stage.addEventListener("dblclick", () => stage.dataset.tool === "look" && fitView());
  stage.addEventListener("wheel", (event) => {
    // At full view, scrolling outwards is the page's.
    if (event.deltaY > 0 && state.view.zoom <= 1) return;
    event.preventDefault();
    zoomAt(panel, point(event), 1.0015 ** -clamp(event.deltaY, -400, 400));
  }, { passive: false });
}

/** The shown pixel under a point of a panel, or null outside. */
function pixelAt(panel, at) {
  const place = placement(panel);
  const [x, y] = [(at.x - place.left) / place.x, (at.y - place.top) / place.y];
  const inside = x >= 0 && y >= 0 && x < state.scene.width && y < state.scene.height;
  return inside ? { x, y, index: Math.floor(y) * state.scene.width + Math.floor(x) } : null;
}

/** The same in pixels of the file, which may be shown reduced. */
function ownPixel({ x, y }) {
  const { size, width, height } = state.scene;
  return [Math.floor((x * size[0]) / width), Math.floor((y * size[1]) / height)];
}

function readOut(panel, at) {
  const pixel = at && pixelAt(panel, at);
  state.hover = pixel ? { panel, x: pixel.x, y: pixel.y } : null;
  ui.read.textContent = pixel ? readWords(pixel) : KEYS;
  redraw();
}

function readWords(pixel) {
  const { scene } = state;
  const { scale, offset, channels } = scene.picture;
  const [x, y] = ownPixel(pixel);
  const where = scene.spacing_mm ? ` (${(x * scene.spacing_mm[1]).toFixed(1)}, ${(y * scene.spacing_mm[0]).toFixed(1)} mm)` : "";
  const stored = [...scene.stored.subarray(pixel.index * channels, (pixel.index + 1) * channels)];
  const values = stored.map((v) => readable(offset + scale * v)).join(", ");
  const said = scene.models.map((m) => {
    const each = m.planes.map((p, k) => `${m.classes[k]} ${(p[pixel.index] / LEVELS).toFixed(2)}`);
    return `${m.title}: ${each.join(", ")}`;
  });
  return [`x ${x}, y ${y}${where}`, `value ${values}${scene.unit ? ` ${scene.unit}` : ""}`, ...said].join(" · ");
}

const readable = (v) => (Number.isInteger(v) || Math.abs(v) >= 1000 ? v.toFixed(0) : v.toPrecision(3));
