// Reads a letter from a drawing: the picture is made as small and grey as those that the network was trained on, and the model runs on it.
import { load } from "./glyphs.mjs";

const LABELS = [..."0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"];
const SIZE = 28;

/** The model, ready to read. */
export async function reader() {
  const model = await load();
  return (picture) => read(model, picture);
}

/** The likeliest letters, each with its probability, and how long the model took in ms. `picture` is an ImageData, or what has its width, height and data: RGBA, light on dark. */
function read(model, { width, height, data }) {
  const image = model.inputs.input;
  for (let y = 0; y < SIZE; y++) {
    for (let x = 0; x < SIZE; x++) image[y * SIZE + x] = mean(data, width, [x, y], [width / SIZE, height / SIZE]);
  }
  const begin = performance.now();
  model.execute();
  const time = performance.now() - begin;
  const { logits } = model.outputs;
  const top = Math.max(...logits);
  const weights = Array.from(logits, (v) => Math.exp(v - top));
  const sum = weights.reduce((a, b) => a + b);
  const all = weights.map((w, i) => ({ letter: LABELS[i], probability: w / sum })).sort((a, b) => b.probability - a.probability);
  return { letters: all.slice(0, 3), time };
}

/** Mean brightness of a cell of the picture, from 0 to 1. */
function mean(data, width, [column, row], [w, h]) {
  let [sum, count] = [0, 0];
  for (let y = Math.floor(row * h); y < (row + 1) * h; y++) {
    for (let x = Math.floor(column * w); x < (column + 1) * w; x++, count++) {
      const at = 4 * (y * width + x);
      sum += data[at] + data[at + 1] + data[at + 2];
    }
  }
  return sum / (count * 3 * 255);
}
