// Runs models in Node.js for `infc verify`: the messages of `infc-worker` (`crates/runtime/src/worker.rs`), with a script and its module in place of an artifact.
import { readSync, writeSync } from "node:fs";

const HELLO = process.argv[1];

/** The next bytes; nothing at the end. */
function get(bytes) {
  const out = new Uint8Array(bytes);
  for (let at = 0; at < bytes; ) {
    let n = 0;
    try {
      n = readSync(0, out, at, bytes - at, null);
    } catch (e) {
      if (e.code === "EAGAIN") continue;
      throw e;
    }
    if (n === 0) return undefined;
    at += n;
  }
  return out;
}

function put(bytes) {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(1, bytes, at);
    } catch (e) {
      if (e.code !== "EAGAIN") throw e;
    }
  }
}

const length = (bytes, at) => Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(at, true));

const eight = (n) => {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(n), true);
  return bytes;
};

function send(kind, ...parts) {
  put(new TextEncoder().encode(kind));
  put(eight(parts.reduce((sum, p) => sum + p.length, 0)));
  parts.forEach(put);
}

/** A number as LEB128 has it. */
function varint(n) {
  const out = [];
  for (; n >= 128; n = Math.floor(n / 128)) out.push((n % 128) | 128);
  return [...out, n];
}

/** What begins a tensor: its tag, the number of its type, its dims. */
const head = (code, dims) => Uint8Array.from([0, code, ...varint(dims.length), ...dims.flatMap(varint)]);

const raw = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);

let ready;

async function load(bytes) {
  const [codes, script] = [length(bytes, 0), length(bytes, 8)];
  const [from, to] = [16 + codes, 16 + codes + script];
  const text = Buffer.from(bytes.subarray(from, to)).toString("base64");
  const glue = await import(`data:text/javascript;base64,${text}`);
  // Types by their numbers, the inputs' and then the outputs'.
  ready = { model: await glue.load({ module: bytes.subarray(to) }), info: glue.info, codes: [...bytes.subarray(16, from)] };
  return ["o", new Uint8Array()];
}

/** The dims of a tensor, and where its elements begin. */
function shape(bytes, at) {
  const next = () => {
    let n = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      n += (byte % 128) * scale;
      if (byte < 128) return n;
    }
  };
  at += 2;
  const rank = next();
  return [Array.from({ length: rank }, next), at];
}

function run(bytes) {
  const { model, info, codes } = ready;
  for (const view of Object.values(model.outputs)) raw(view).fill(0xa5);
  const [given, sizes] = [{}, {}];
  let at = 0;
  for (const { name, dims } of info.inputs) {
    const end = at + 8 + length(bytes, at);
    const [actual, first] = shape(bytes, at + 8);
    dims.forEach((d, axis) => {
      if (info.dims.some((known) => known.name === d)) sizes[d] = actual[axis];
    });
    const view = model.inputs[name];
    const data = new Uint8Array(bytes.subarray(first, end));
    given[name] = new view.constructor(data.buffer, 0, data.length / view.BYTES_PER_ELEMENT);
    at = end;
  }
  const outputs = model.run(given, sizes);
  const parts = info.outputs.flatMap(({ name }, i) => {
    const [first, data] = [head(codes[info.inputs.length + i], model.dims[name]), raw(outputs[name])];
    return [eight(first.length + data.length), first, data];
  });
  return ["v", ...parts];
}

send("h", new TextEncoder().encode(`${HELLO}: Node.js ${process.version}`));
for (;;) {
  const first = get(9);
  if (!first) break;
  const bytes = get(length(first, 1));
  let answer;
  try {
    answer = first[0] === 0x61 ? await load(bytes) : run(bytes);
  } catch (e) {
    answer = ["e", new TextEncoder().encode(String(e?.message ?? e))];
  }
  send(...answer);
}
