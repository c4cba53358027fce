// The viewer: what is shown, what the reader does, and what the page is told. Runs once per mount, as the body of a
// function with Gradio's `element`, `props`, `trigger` and `watch`. Text from the scene is only ever set as text.

const ui = Object.fromEntries([...element.querySelectorAll("[data-v]")].map((e) => [e.dataset.v, e]));
const KEYS = matchMedia("(pointer: coarse)").matches
  ? "Two fingers zoom, dragging moves, a double tap fits."
  : "Wheel or + − zooms, drag or arrows move, 0 fits, space hides the mask.";
const SLICE_WAIT_MS = 120; // an arrow key held down asks once
const ANSWER_WAIT_MS = 30000; // then the slider goes back to what is shown
const state = {
  scene: null,
  panels: [],
  layers: [], // per model: mask, painted fill, outlines, shares
  view: { zoom: 1, x: 0, y: 0 }, // the picture's pixel in the middle of every panel
  window: [0, 1],
  range: [0, 1],
  threshold: null, // null: each model's own
  hidden: new Set(),
  truthShown: true,
  marks: true,
  peek: false, // space is held: without marks
  hover: null,
  wanted: null, // slice that was asked for and has not come
  sent: null, // slice that the server was last asked for
};

const make = (tag, attributes = {}, text = "") => {
  const made = Object.assign(document.createElement(tag), attributes);
  if (text) made.textContent = text;
  return made;
};

function debounced(fn, wait) {
  let timer = 0;
  const later = (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => fn(...args), wait);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

// ---- A new value ------------------------------------------------------------------------------------------------

let newest = 0; // a decode that was overtaken by a newer value is dropped

async function show(value) {
  const mine = ++newest;
  if (!value || !value.key) return showEmpty();
  let scene;
  try {
    scene = await decode(value);
  } catch (error) {
    console.error(error);
    if (mine === newest) showEmpty("This picture could not be shown. A newer browser may help.");
    return;
  }
  if (mine !== newest) return;
  const before = state.scene;
  const moved = !before || before.slice !== scene.slice;
  const fresh = !before || before.key !== scene.key || before.models.length !== scene.models.length;
  state.scene = scene;
  ui.empty.hidden = true;
  ui.all.hidden = false;
  if (fresh) startOver();
  scene.models.forEach((m) => (m.names = m.classes.map((c) => classNames().indexOf(c))));
  if (scene.models.length > 1 && haveSameClasses()) scene.heat = paintHeat(scene);
  if (scene.truth) scene.truthLines = linesOf(scene.truth, Math.max(...classCounts()));
  if (fresh || Boolean(before.truth) !== Boolean(scene.truth)) buildClasses();
  if (fresh) {
    buildPanels();
    ui.read.textContent = KEYS;
  }
  settleSlice();
  describePicture();
  repaintPicture();
  remark();
  settlePrompt(fresh, moved);
  if (scene.slices > 1) say(`Slice ${scene.slice + 1} of ${scene.slices}.`);
}

function showEmpty(words) {
  state.scene = null;
  if (words) ui.empty.textContent = words;
  ui.empty.hidden = false;
  ui.all.hidden = true;
}

/** Another scan or other models: nothing of how the last one was looked at is kept, but for mode and opacity. */
function startOver() {
  const { scene } = state;
  Object.assign(state, { threshold: null, hidden: new Set(), truthShown: true, hover: null, wanted: null, sent: null });
  askForSlice.cancel();
  state.view = { zoom: 1, x: scene.width / 2, y: scene.height / 2 };
  state.window = [...scene.window];
  state.range = scene.picture.type === "uint8" ? [0, 255] : [Infinity, -Infinity];
  ui.slice.max = scene.slices;
  ui.sliceBox.hidden = scene.slices < 2;
  ui.bright.value = 100;
  buildPresets();
  showThreshold();
}

const classNames = () => [...new Set(state.scene.models.flatMap((m) => m.classes))];
const classCounts = () => state.scene.models.map((m) => m.classes.length);
const haveSameClasses = () => state.scene.models.every((m) => m.classes.join("\n") === state.scene.models[0].classes.join("\n"));
const colour = (index) => state.scene.colours[index % state.scene.colours.length];
const css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;

function linesOf(mask, classes) {
  const { width, height } = state.scene;
  return Array.from({ length: classes }, (_, k) => outline(mask, k + 1, width, height));
}

function describePicture() {
  const { name, size, shown, unit } = state.scene;
  ui.name.textContent = name;
  const long = Math.max(...size);
  const reduced = Math.max(...shown) < long ? `, shown at ${Math.max(...shown)} of ${long} px` : "";
  ui.note.textContent = `${size[0]} × ${size[1]} px${reduced}${unit ? `, ${unit}` : ""}`;
  const { offset, scale, type } = state.scene.picture;
  if (type === "uint8") return;
  const ends = [...state.window, ...[...state.scene.windows].flatMap((w) => [w.low, w.high])];
  for (const stored of state.scene.stored) {
    const v = offset + scale * stored;
    if (v < state.range[0]) state.range[0] = v;
    if (v > state.range[1]) state.range[1] = v;
  }
  state.range = [Math.min(state.range[0], ...ends), Math.max(state.range[1], ...ends)];
  showWindow();
}

// ---- Marks ------------------------------------------------------------------------------------------------------

const thresholdOf = (model) => (model.activation === "sigmoid" ? state.threshold ?? model.threshold : model.threshold);

/** Decides and paints every mask anew: after a threshold, a class or a slice has changed. */
function remark() {
  const { scene } = state;
  const names = classNames();
  state.layers = scene.models.map((model) => {
    const mask = decide(model, thresholdOf(model));
    const shown = model.names.map((n) => !state.hidden.has(names[n]));
    return {
      shown,
      shares: shares(mask, model.classes.length),
      fill: paintMask(mask, scene.width, scene.height, model.names.map((n, k) => (shown[k] ? colour(n) : null))),
      lines: linesOf(mask, model.classes.length),
    };
  });
  describePanels();
  redraw();
}

function describePanels() {
  const { scene } = state;
  for (const panel of state.panels) {
    panel.stage.style.aspectRatio = `${scene.width} / ${scene.height * scene.tall}`;
    const words = panelWords(panel);
    panel.said.replaceChildren(words.short);
    if (panel.kind === "heat") panel.said.append(make("i", { className: "v-ramp" }));
    panel.canvas.setAttribute("aria-label", words.long);
    const light = panel.light ? scene.models[panel.index].light : null;
    if (!panel.light) continue;
    panel.light.className = light ? `v-light ${light.colour}` : "";
    panel.light.textContent = light ? `${light.word} (${light.dice.toFixed(2)})` : "";
  }
}

function panelWords(panel) {
  const { scene } = state;
  if (panel.kind === "picture") return { short: "without marks", long: `${scene.name}, without marks` };
  if (panel.kind === "heat") {
    const far = percent(scene.heat.far);
    const who = scene.models.map((m) => m.title).join(" and ");
    return { short: `over 0.5 apart: ${far}`, long: `${who} are more than 0.5 apart in ${far} of the picture` };
  }
  const { classes, title, prompted } = scene.models[panel.index];
  const layer = state.layers[panel.index];
  const seen = classes.map((c, k) => [c, layer.shares[k + 1], layer.shown[k]]).filter((c) => c[1] > 0 && c[2]);
  const list = seen.map(([c, share]) => `${c} ${percent(share)}`).join(", ");
  const long = seen.map(([c, share]) => `${c}, ${percent(share)}`).join(" and ");
  const who = prompted === null ? title : `${title}, by your prompt,`;
  if (long) return { short: list, long: `${who} marks ${long} of the picture` };
  const any = layer.shares[0] < 1;
  return any ? { short: "hidden", long: `${title}: what it marks is hidden` } : { short: "nothing marked", long: `${who} marks nothing` };
}

let spoken = debounced((text) => (ui.live.textContent = text), 400);
const say = (text) => {
  const said = state.panels.filter((p) => p.kind === "model").map((p) => p.canvas.getAttribute("aria-label"));
  spoken([text, ...said].join(". "));
};

// ---- Slices -----------------------------------------------------------------------------------------------------

const giveUp = debounced(() => {
  Object.assign(state, { wanted: null, sent: null });
  if (state.scene) showSlice();
}, ANSWER_WAIT_MS);

const askForSlice = debounced(() => {
  if (!state.scene || state.wanted === null) return;
  // Back where it was before anything was asked.
  if (state.wanted === state.scene.slice && state.sent === null) state.wanted = null;
  else {
    state.sent = state.wanted;
    trigger("input", { key: state.scene.key, slice: state.wanted });
    giveUp();
  }
  showSlice();
}, SLICE_WAIT_MS);

function wantSlice(index) {
  state.wanted = index;
  showSlice();
  askForSlice();
}

function stepSlice(step) {
  const { slice, slices } = state.scene;
  wantSlice(clamp((state.wanted ?? slice) + step, 0, slices - 1));
}

/** A picture has come: the one that was waited for, or one on the way to it. */
function settleSlice() {
  const { slice } = state.scene;
  if (state.sent === slice) state.sent = null;
  if (state.wanted === slice && state.sent === null) {
    state.wanted = null;
    giveUp.cancel();
  }
  showSlice();
}

function showSlice() {
  const { slice, slices } = state.scene;
  const at = state.wanted ?? slice;
  ui.slice.value = at + 1;
  ui.sliceOut.textContent = `slice ${at + 1} of ${slices}`;
  ui.slice.setAttribute("aria-valuetext", ui.sliceOut.textContent);
  ui.busy.textContent = state.wanted === null ? "" : `loading slice ${at + 1} …`;
  ui.panels.setAttribute("aria-busy", String(state.wanted !== null));
}

// ---- Threshold --------------------------------------------------------------------------------------------------

const tellThreshold = debounced(() => {
  if (state.scene) trigger("release", { key: state.scene.key, threshold: state.threshold });
}, 150);

function showThreshold() {
  const decided = state.scene.models.filter((m) => m.activation === "sigmoid");
  const own = [...new Set(decided.map((m) => m.threshold.toFixed(2)))];
  const at = state.threshold ?? decided[0]?.threshold ?? 0.5;
  ui.threshold.disabled = decided.length === 0;
  ui.threshold.value = at;
  const mixed = state.threshold === null && own.length > 1;
  ui.thresholdOut.textContent = decided.length === 0 ? "–" : mixed ? "own" : at.toFixed(2);
  ui.own.textContent = own.length > 1 ? "Back to each model's own" : `Back to the model's own ${own[0] ?? ""}`;
  ui.own.hidden = decided.length === 0;
  ui.own.disabled = state.threshold === null;
  const likeliest = state.scene.models.filter((m) => m.activation === "softmax").map((m) => m.title);
  ui.why.textContent = likeliest.length === 0 ? ""
    : decided.length === 0 ? "No threshold: the likeliest class is marked."
    : `Not for ${likeliest.join(", ")}: it marks the likeliest class.`;
}

function moveThreshold(threshold) {
  state.threshold = threshold;
  showThreshold();
  remarkSoon();
  say(`Threshold ${ui.thresholdOut.textContent}`);
}

let marking = 0;
function remarkSoon() {
  cancelAnimationFrame(marking);
  marking = requestAnimationFrame(() => state.scene && remark());
}

// ---- Window -----------------------------------------------------------------------------------------------------

function buildPresets() {
  const { scene } = state;
  const options = [...scene.windows].map((w, i) => make("option", { value: String(i) }, w.name.replaceAll("-", " ")));
  ui.preset.replaceChildren(...options, make("option", { value: "own" }, "own"));
  const rgb = scene.picture.channels === 3;
  for (const box of [ui.presetBox, ui.centreBox, ui.widthBox]) box.hidden = rgb;
  ui.brightBox.hidden = !rgb;
  showWindow();
}

function showWindow() {
  const [low, high] = state.window;
  const reach = state.range[1] - state.range[0];
  if (!(reach > 0)) return; // before the first picture
  const step = reach > 20 ? 1 : reach / 200;
  const set = (slider, least, most, value, out) => {
    Object.assign(slider, { min: least, max: most, step: reach > 20 ? 1 : "any" });
    slider.value = value;
    out.textContent = readable(step === 1 ? Math.round(value) : value);
  };
  set(ui.centre, state.range[0], state.range[1], (low + high) / 2, ui.centreOut);
  set(ui.width, step, reach, high - low, ui.widthOut);
  const found = [...state.scene.windows].findIndex((w) => Math.abs(w.low - low) < step && Math.abs(w.high - high) < step);
  ui.preset.value = found < 0 ? "own" : String(found);
  ui.brightOut.textContent = `${ui.bright.value} %`;
}

function moveWindow(low, high) {
  state.window = [low, high];
  showWindow();
  repaintPicture();
}

function slideWindow() {
  const [centre, width] = [Number(ui.centre.value), Number(ui.width.value)];
  moveWindow(centre - width / 2, centre + width / 2);
}

/** As radiology viewers do: to the right wider, down darker. */
function dragWindow(dx, dy) {
  if (state.scene.picture.channels === 3) return;
  const [low, high] = state.window;
  const reach = state.range[1] - state.range[0];
  const width = clamp(high - low + (dx * reach) / 400, reach / 255, reach);
  const centre = clamp((low + high) / 2 + (dy * reach) / 400, ...state.range);
  moveWindow(centre - width / 2, centre + width / 2);
}

// ---- Classes ----------------------------------------------------------------------------------------------------

function check(words, swatch, on, change) {
  const box = make("input", { type: "checkbox", checked: on });
  const label = make("label");
  label.append(box, swatch, make("span", {}, words));
  box.addEventListener("change", () => change(box.checked));
  return label;
}

function buildClasses() {
  const boxes = classNames().map((name, i) => {
    const swatch = make("i");
    swatch.style.background = css(colour(i));
    return check(name, swatch, !state.hidden.has(name), (on) => {
      state.hidden[on ? "delete" : "add"](name);
      remark();
    });
  });
  if (state.scene.truth) {
    boxes.push(check("reference", make("i", { className: "dashed" }), state.truthShown, (on) => {
      state.truthShown = on;
      redraw();
    }));
  }
  ui.classes.replaceChildren(ui.classes.querySelector("legend"), ...boxes);
}

// ---- Controls ---------------------------------------------------------------------------------------------------

const on = (name, event, act) => ui[name].addEventListener(event, () => state.scene && act(ui[name]));
on("slice", "input", (slider) => wantSlice(Number(slider.value) - 1));
on("threshold", "input", (slider) => moveThreshold(Number(slider.value)));
on("threshold", "change", tellThreshold);
on("own", "click", () => {
  moveThreshold(null);
  tellThreshold();
});
on("marks", "click", (button) => {
  state.marks = !state.marks;
  button.textContent = state.marks ? "Hide mask" : "Show mask";
  redraw();
});
on("mode", "change", redraw);
on("opacity", "input", () => {
  showOpacity();
  redraw();
});
on("preset", "change", (select) => {
  const preset = state.scene.windows[select.value];
  if (preset) moveWindow(preset.low, preset.high);
});
on("centre", "input", slideWindow);
on("width", "input", slideWindow);
on("bright", "input", () => {
  showWindow();
  repaintPicture();
});
on("in", "click", () => zoomMiddle(1.25));
on("out", "click", () => zoomMiddle(0.8));
on("fit", "click", fitView);
const showOpacity = () => (ui.opacityOut.textContent = `${ui.opacity.value} %`);

showOpacity();
connectPrompts();
watch("value", () => show(props.value));
show(props.value);
