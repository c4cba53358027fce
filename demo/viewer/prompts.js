// The viewer's prompts: what a click or a drag asks of the models that take them, and how the question is drawn.
// A value's `prompt` says what is asked now; steps that the page has not answered yet wait in `prompting.queue`.

const TOOLS = {
  look: "Click and Box ask the model about one thing.",
  point: "Click on what you mean. Right click, Alt, or “Not this”: a place beside it.",
  box: "Drag a box around what you mean. Escape leaves it.",
};
const PROMPT_WAIT_MS = 30000; // then what was asked is given up
const INSIDE = [0, 114, 178]; // as demo/case/content.py's
const BESIDE = [213, 94, 0];
const prompting = {
  tool: "look",
  box: null, // being drawn: its panel and two corners, in the picture's own pixels
  queue: [], // steps not answered yet; the first is on its way
  handled: null, // of the value that was shown when it was sent
};

// ---- What the page is told --------------------------------------------------------------------------------------

const stopWaiting = debounced(() => {
  prompting.queue = [];
  if (state.scene) showPrompt();
}, PROMPT_WAIT_MS);

function askStep(step) {
  prompting.queue.push(step);
  if (prompting.queue.length === 1) sendStep();
  showPrompt();
}

function sendStep() {
  const { key, slice, prompt } = state.scene;
  prompting.handled = prompt.handled;
  trigger("select", { key, slice, step: prompting.queue[0] });
  stopWaiting();
}

/** A value has come. Another scan, slice or model: what was asked there is over. */
function settlePrompt(fresh, moved) {
  const { prompt } = state.scene;
  if (fresh) prompting.tool = "look";
  if (fresh || moved || !prompt) {
    Object.assign(prompting, { queue: [], box: null });
    stopWaiting.cancel();
  } else if (prompting.queue.length && prompt.handled !== prompting.handled) {
    prompting.queue.shift();
    if (prompting.queue.length) sendStep();
    else {
      stopWaiting.cancel();
      say(promptWords());
    }
  }
  if (fresh && prompt) {
    ui.promptClass.replaceChildren(...[...prompt.classes].map((name) => make("option", { value: name }, name)));
  }
  showPrompt();
}

// ---- The tools --------------------------------------------------------------------------------------------------

function chooseTool(tool) {
  Object.assign(prompting, { tool, box: null });
  showPrompt();
}

/** What is drawn over the pictures now: what was answered, and what is still asked. */
function promptShown() {
  const { prompt } = state.scene;
  const now = { points: [...prompt.points].map((p) => [...p, true]), box: prompt.box && [...prompt.box] };
  for (const step of prompting.queue) {
    if (step.act === "point") now.points.push([step.x, step.y, step.inside, false]);
    if (step.act === "box") now.box = step.box;
  }
  return now;
}

function promptWords() {
  const { prompt } = state.scene;
  if (prompting.queue.length) return "asking …";
  if (!prompt.questions) return TOOLS[prompting.tool];
  const on = [...prompt.points].filter((p) => p[2]).length;
  const beside = prompt.points.length - on;
  const parts = [on && `${on} on it`, beside && `${beside} beside it`, prompt.box && "a box"].filter(Boolean);
  const left = prompt.slots - prompt.points.length - (prompt.box ? 2 : 0);
  return `Asked: ${parts.join(", ")} · room for ${left} more point${left === 1 ? "" : "s"}`;
}

function showPrompt() {
  const { prompt, models } = state.scene;
  ui.tools.hidden = !prompt;
  for (const stage of state.panels.map((p) => p.stage)) stage.dataset.tool = prompt ? prompting.tool : "look";
  if (prompt) {
    for (const tool of Object.keys(TOOLS)) ui[tool].setAttribute("aria-pressed", String(tool === prompting.tool));
    ui.beside.disabled = prompting.tool !== "point";
    ui.promptClassBox.hidden = prompt.classes.length < 2;
    ui.promptClass.value = prompt.class;
    const none = !prompt.questions || prompting.queue.length > 0;
    for (const button of [ui.undo, ui.over]) button.disabled = none;
    ui.asked.textContent = promptWords();
  }
  for (const panel of state.panels.filter((p) => p.kind === "model")) {
    const { prompted } = models[panel.index];
    panel.asked.textContent = prompted === null ? "" : `your prompt · IoU ${prompted.toFixed(2)}, its own estimate`;
  }
  redraw();
}

function connectPrompts() {
  for (const tool of Object.keys(TOOLS)) on(tool, "click", () => chooseTool(tool));
  on("undo", "click", () => askStep({ act: "undo" }));
  on("over", "click", () => askStep({ act: "over" }));
  on("promptClass", "change", (select) => askStep({ act: "class", class_name: select.value }));
}

// ---- The pointer ------------------------------------------------------------------------------------------------

/** A place of a panel in the picture's own pixels, whole numbers; beside the picture they are negative or too large. */
function promptPixel(panel, at) {
  const { size, width, height } = state.scene;
  const place = placement(panel);
  const [x, y] = [(at.x - place.left) / place.x, (at.y - place.top) / place.y];
  return [Math.floor((x * size[0]) / width), Math.floor((y * size[1]) / height)];
}

function askPoint(panel, at, event) {
  const [x, y] = promptPixel(panel, at);
  const beside = ui.beside.checked || event.altKey || event.ctrlKey || event.button === 2;
  askStep({ act: "point", x, y, inside: !beside });
}

function startBox(panel, at) {
  const corner = promptPixel(panel, at);
  prompting.box = { panel, from: corner, to: corner };
}

function dragBox(panel, at) {
  prompting.box.to = promptPixel(panel, at);
  redraw();
}

/** A box that reaches over the picture's edge ends there; one that is no larger than a click is none. */
function endBox() {
  const { from, to } = prompting.box;
  prompting.box = null;
  const box = boxOf(from, to);
  if (box[2] - box[0] >= 2 && box[3] - box[1] >= 2) askStep({ act: "box", box });
  else redraw();
}

function boxOf(a, b) {
  const { size } = state.scene;
  const inside = (v, axis) => clamp(v, 0, size[axis] - 1);
  return [
    inside(Math.min(a[0], b[0]), 0), inside(Math.min(a[1], b[1]), 1),
    inside(Math.max(a[0], b[0]), 0), inside(Math.max(a[1], b[1]), 1),
  ];
}

// ---- Drawing ----------------------------------------------------------------------------------------------------

/** A disc with + on the thing, a diamond with − beside it, the box: shapes and signs tell them apart without colour. */
function drawPrompt(context, place) {
  const { prompt, size, width, height } = state.scene;
  if (!prompt) return;
  const now = promptShown();
  const across = (place.x * width) / size[0];
  const down = (place.y * height) / size[1];
  const drawn = prompting.box ? boxOf(prompting.box.from, prompting.box.to) : null;
  for (const box of [now.box, drawn]) if (box) drawBox(context, place, box, across, down, box === drawn);
  for (const [x, y, inside, answered] of now.points) {
    drawPoint(context, place.left + (x + 0.5) * across, place.top + (y + 0.5) * down, inside, answered);
  }
}

function drawBox(context, place, [left, top, right, bottom], across, down, drawing) {
  const path = new Path2D();
  path.rect(place.left + left * across, place.top + top * down, (right + 1 - left) * across, (bottom + 1 - top) * down);
  context.setLineDash([]);
  context.strokeStyle = "#fff";
  context.lineWidth = 4;
  context.stroke(path);
  context.setLineDash(drawing ? [6, 4] : []);
  context.strokeStyle = css(INSIDE);
  context.lineWidth = 2;
  context.stroke(path);
  context.setLineDash([]);
}

function drawPoint(context, x, y, inside, answered) {
  const r = 8;
  const path = new Path2D();
  if (inside) path.arc(x, y, r, 0, 2 * Math.PI);
  else for (const [dx, dy] of [[-r, 0], [0, -r], [r, 0], [0, r]]) path.lineTo(x + dx * 1.2, y + dy * 1.2);
  path.closePath();
  context.globalAlpha = answered ? 1 : 0.55;
  context.fillStyle = css(inside ? INSIDE : BESIDE);
  context.fill(path);
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.stroke(path);
  context.beginPath();
  context.moveTo(x - 4, y);
  context.lineTo(x + 4, y);
  if (inside) {
    context.moveTo(x, y - 4);
    context.lineTo(x, y + 4);
  }
  context.stroke();
  context.globalAlpha = 1;
}
