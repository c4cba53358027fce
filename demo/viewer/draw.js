// The viewer's pure parts: decoding, deciding, colouring, outlining. Nothing here touches the page.

const LEVELS = 65536; // demo/viewer/scene.py's

/** Base64 of zlib-deflated bytes to a Uint8Array. Exact: no image decoder, no colour management. */
async function inflate(text) {
  const characters = atob(text);
  const packed = new Uint8Array(characters.length);
  for (let i = 0; i < packed.length; i++) packed[i] = characters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const inflate16 = async (text) => new Uint16Array((await inflate(text)).buffer);

/** A scene's JSON with its arrays; `shown` is the size of all of them, width first. */
async function decode(value) {
  const models = [...value.models].map(async (m) => ({
    ...m,
    classes: [...m.classes],
    planes: await Promise.all([...m.probability].map(inflate16)),
    likeliest: m.mask ? await inflate(m.mask) : null,
  }));
  const picture = value.picture;
  const [width, height] = value.shown;
  return {
    ...value,
    colours: [...value.colours].map((c) => [...c]),
    width,
    height,
    // Columns and rows may be spaced differently: a pixel is drawn as wide and high as it is in the body.
    tall: value.spacing_mm ? (value.spacing_mm[0] * value.size[1] * width) / (value.spacing_mm[1] * value.size[0] * height) : 1,
    stored: await (picture.type === "uint8" ? inflate(picture.data) : inflate16(picture.data)),
    truth: value.truth ? await inflate(value.truth) : null,
    models: await Promise.all(models),
  };
}

function canvasOf(image) {
  const canvas = document.createElement("canvas");
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** The picture in grey or colour through a window of values. */
function paintPicture(scene, low, high) {
  const { scale, offset, channels, type } = scene.picture;
  const table = new Uint8ClampedArray(type === "uint8" ? 256 : LEVELS);
  const gain = 255 / Math.max(high - low, 1e-9);
  for (let v = 0; v < table.length; v++) table[v] = (offset + scale * v - low) * gain;
  const image = new ImageData(scene.width, scene.height);
  const out = image.data;
  const stored = scene.stored;
  const step = channels === 3 ? 1 : 0;
  for (let i = 0, from = 0, to = 0; i < scene.width * scene.height; i++, from += channels, to += 4) {
    out[to] = table[stored[from]];
    out[to + 1] = table[stored[from + step]];
    out[to + 2] = table[stored[from + 2 * step]];
    out[to + 3] = 255;
  }
  return canvasOf(image);
}

/** Class index of every pixel, 0 for background, as segcore.picture.preprocess.decide does it. */
function decide(model, threshold) {
  if (model.likeliest) return model.likeliest;
  const plane = model.planes[0];
  const mask = new Uint8Array(plane.length);
  const least = threshold * LEVELS;
  for (let i = 0; i < plane.length; i++) mask[i] = plane[i] >= least ? 1 : 0;
  return mask;
}

/** Share of the picture that each class takes, 0–1; index 0 is the background. */
function shares(mask, classes) {
  const counts = new Float64Array(classes + 1);
  for (let i = 0; i < mask.length; i++) counts[mask[i]]++;
  return counts.map((n) => n / mask.length);
}

/** One pixel as ImageData keeps it in memory: red is the lowest byte. */
const rgba = (r, g, b, a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** Opaque colour where a class is marked and shown (null: hidden); drawn with the opacity that is asked for. */
function paintMask(mask, width, height, colours) {
  const image = new ImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const table = [0, ...colours.map((c) => (c ? rgba(...c, 255) : 0))];
  for (let i = 0; i < mask.length; i++) out[i] = table[mask[i]];
  return canvasOf(image);
}

/** Steps of one pixel: east, south, west, north. */
const STEP_X = [1, 0, -1, 0];
const STEP_Y = [0, 1, 0, -1];

/**
 * Edges of a class between pixels as closed lines, so that they can be stroked at any zoom, and dashed.
 * Every edge is first noted at its starting corner with the class on its right hand, then followed around.
 */
function outline(mask, k, width, height) {
  const wide = width + 1;
  const edges = new Uint8Array(wide * (height + 1));
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0, corner = y * wide; x < width; x++, i++, corner++) {
      if (mask[i] !== k) continue;
      if (y === 0 || mask[i - width] !== k) edges[corner] |= 1;
      if (x === width - 1 || mask[i + 1] !== k) edges[corner + 1] |= 2;
      if (y === height - 1 || mask[i + width] !== k) edges[corner + wide + 1] |= 4;
      if (x === 0 || mask[i - 1] !== k) edges[corner + wide] |= 8;
    }
  }
  const path = new Path2D();
  for (let corner = 0; corner < edges.length; corner++) while (edges[corner]) follow(edges, corner, wide, path);
  return path;
}

function follow(edges, corner, wide, path) {
  let direction = Math.log2(edges[corner] & -edges[corner]);
  let at = corner;
  path.moveTo(at % wide, Math.floor(at / wide));
  do {
    edges[at] &= ~(1 << direction);
    at += STEP_X[direction] + STEP_Y[direction] * wide;
    // Right first: where two pixels touch only at a corner, the line stays with its own pixel.
    const next = [1, 0, 3].map((turn) => (direction + turn) % 4).find((d) => edges[at] & (1 << d));
    if (next !== direction) path.lineTo(at % wide, Math.floor(at / wide));
    direction = next;
  } while (direction !== undefined && at !== corner);
  path.closePath();
}

/** Black, orange, yellow, white, as demo/case/content.py's draw_heat_map: brightness alone carries the order. */
const HEAT = [[0, 0, 0, 0], [0.35, 213, 94, 0], [0.75, 240, 228, 66], [1, 255, 255, 255]];

function heatColour(apart) {
  const upper = HEAT.findIndex((h) => h[0] >= apart && h[0] > 0);
  const [a, b] = [HEAT[upper - 1], HEAT[upper]];
  const part = (apart - a[0]) / (b[0] - a[0]);
  return [1, 2, 3].map((c) => a[c] + part * (b[c] - a[c]));
}

/** How far any other model is from the first, as heat over a dimmed picture, and how much is more than 0.5 apart. */
function paintHeat(scene) {
  const size = scene.width * scene.height;
  const apart = new Uint16Array(size);
  for (const other of scene.models.slice(1)) {
    other.planes.forEach((plane, k) => {
      const first = scene.models[0].planes[k];
      for (let i = 0; i < size; i++) {
        const far = Math.abs(plane[i] - first[i]);
        if (far > apart[i]) apart[i] = far;
      }
    });
  }
  const table = Uint32Array.from({ length: 256 }, (_, v) => rgba(...heatColour(v / 255), Math.min(255, v * 2.5)));
  const image = new ImageData(scene.width, scene.height);
  const out = new Uint32Array(image.data.buffer);
  let far = 0;
  for (let i = 0; i < size; i++) {
    out[i] = table[apart[i] >> 8];
    if (apart[i] > LEVELS / 2) far++;
  }
  return { canvas: canvasOf(image), far: far / size };
}

/** A round length in millimetres, 1, 2 or 5 times a power of ten, of at most `most`. */
function roundLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return ([5, 2, 1].find((n) => n * power <= most) ?? 1) * power;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** "23 %", "3.4 %", "under 0.1 %". */
function percent(share) {
  if (share > 0 && share < 0.001) return "under 0.1 %";
  return `${(100 * share).toFixed(share < 0.0995 && share > 0 ? 1 : 0)} %`;
}
