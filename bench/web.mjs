// infc's WebAssembly beside ONNX Runtime Web in one process of Node.js: `node web.mjs INFC FOLDER PAGE|- MODEL.onnx...`. Needs onnxruntime-web in node_modules beside it or
// above FOLDER, where it is found as a package; makes modules in FOLDER. Both run on one thread with the same random inputs, outputs are compared first, and they take turns.
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [, , infc, folder, page, ...models] = process.argv;
mkdirSync(folder, { recursive: true });
const require = createRequire(resolve(folder, "index.js"));
const peer = dirname(require.resolve("onnxruntime-web/wasm"));
const { version } = JSON.parse(readFileSync(join(peer, "../package.json"), "utf8"));
const ort = await import(pathToFileURL(join(peer, "ort.wasm.mjs")));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";

// Sizes for dims that models leave open.
const DIMS = { batch: 1, length: 32 };

const name = (path) => (basename(path) === "model.onnx" ? basename(dirname(resolve(path))) : basename(path, ".onnx"));

const machine = process.env.TARGET ?? "wasm32-simd";

/** The module of a model, its script's path. */
function compiled(path) {
  const out = join(folder, `${name(path)}.wasm`);
  const run = (dims) => execFileSync(infc, ["compile", path, "--emit", "wasm", "--target", machine, "-o", out, "--json", ...dims], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
  let text;
  // The error names what is open.
  for (let dims = [], tries = 0; text === undefined; tries++) {
    try {
      text = run(dims);
    } catch (e) {
      const open = [...String(e.stderr).matchAll(/--dim ([^=\s<']+)=SIZE/g)].map(([, dim]) => dim);
      if (tries > 0 || open.length === 0) throw e;
      dims = open.flatMap((dim) => ["--dim", `${dim}=${DIMS[dim] ?? 1}`]);
    }
  }
  return { report: JSON.parse(text), script: out.replace(/wasm$/, "mjs"), module: out };
}

// A generator of numbers, the same in each run (SplitMix32).
let seed = 1;
const random = () => {
  seed = (seed + 0x9e3779b9) | 0;
  let t = seed ^ (seed >>> 16);
  t = Math.imul(t, 0x21f0aaad);
  t ^= t >>> 15;
  t = Math.imul(t, 0x735a2d97);
  return ((t ^ (t >>> 15)) >>> 0) / 2 ** 32;
};

/** Values for an input: floats from -1 to 1, small integers. */
function values(view) {
  const out = view.constructor.from(view);
  for (let i = 0; i < out.length; i++) {
    const r = random();
    const integer = Math.floor(r * 10);
    out[i] = typeof out[0] === "bigint" ? BigInt(integer) : out instanceof Float32Array || out instanceof Float64Array ? 2 * r - 1 : integer;
  }
  return out;
}

const TYPES = { f32: "float32", f64: "float64", i64: "int64", i32: "int32", u8: "uint8", i8: "int8", bool: "bool" };

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];

const clock = () => Number(process.hrtime.bigint()) / 1e6;

/** The largest difference of two outputs, relative to the largest value; exact where they are integers. */
function difference(a, b) {
  let [largest, worst] = [0, 0];
  if (a.length !== b.length) return Infinity;
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [Number(a[i]), Number(b[i])];
    largest = Math.max(largest, Math.abs(y));
    worst = Math.max(worst, Number.isNaN(x) && Number.isNaN(y) ? 0 : Math.abs(x - y));
  }
  return worst / Math.max(largest, 1e-30);
}

const rows = [];
for (const path of models) {
  const label = name(path);
  let ours;
  try {
    ours = compiled(path);
  } catch (e) {
    console.log(`${label}: not compiled: ${String(e.stderr ?? e).trim().split("\n")[0]}`);
    continue;
  }
  const glue = await import(pathToFileURL(resolve(ours.script)));
  const [code, file] = [readFileSync(ours.module), readFileSync(path)];
  let begin = clock();
  const model = await glue.load({ module: code });
  const given = Object.fromEntries(Object.entries(model.inputs).map(([key, view]) => [key, values(view)]));
  model.run(given);
  const first = clock() - begin;
  begin = clock();
  let session, feeds, theirs;
  try {
    session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"], graphOptimizationLevel: "all", logSeverityLevel: 3 });
    feeds = Object.fromEntries(glue.info.inputs.map((p) => [p.name, new ort.Tensor(TYPES[p.dtype], TYPES[p.dtype] === "bool" ? Uint8Array.from(given[p.name]) : given[p.name], p.dims)]));
    theirs = await session.run(feeds);
  } catch (e) {
    console.log(`${label}: ONNX Runtime Web: ${String(e?.message ?? e).slice(0, 120)}`);
    continue;
  }
  const peerFirst = clock() - begin;
  const outputs = model.run(given);
  const worst = Math.max(...Object.keys(outputs).map((key) => difference(outputs[key], theirs[key].data)));
  for (const [key, v] of Object.entries(given)) model.inputs[key].set(v);
  const times = [[], []];
  const turns = [() => model.execute(), () => session.run(feeds)];
  const limit = Number(process.env.SECONDS_EACH ?? 2) * 1000;
  for (begin = clock(); clock() - begin < limit || times[1].length < 5; ) {
    for (const [k, turn] of turns.entries()) {
      // Several runs in a row, of which the first meets the other's caches and does not count.
      const until = clock() + 20;
      for (let n = 0; n < 2 || clock() < until; n++) {
        const start = clock();
        const done = turn();
        if (done) await done;
        if (n > 0) times[k].push(clock() - start);
      }
    }
  }
  await session.release();
  const [a, b] = times.map(median);
  const row = { label, a, b, ratio: a / b, first, peerFirst, code: ours.report.code_bytes, module: code.length, model: file.length, worst };
  rows.push(row);
  console.log(`${label.padEnd(28)} ${a.toFixed(4).padStart(10)} ms  ${b.toFixed(4).padStart(10)} ms  ${row.ratio.toFixed(2)}  first ${first.toFixed(1)} ${peerFirst.toFixed(1)} ms  code ${(row.code / 1024).toFixed(0)} KiB  difference ${worst.toExponential(1)}`);
}

if (page !== "-") {
  const ms = (n) => (n < 0.1 ? n.toFixed(4) : n < 10 ? n.toFixed(2) : n.toFixed(1));
  const kib = (n) => (n / 1024).toFixed(0);
  const library = statSync(join(peer, "ort-wasm-simd-threaded.wasm")).size + statSync(join(peer, "ort.wasm.min.mjs")).size;
  const cpu = readFileSync("/proc/cpuinfo", "utf8").match(/^model name\s*:\s*(.*)$/m)?.[1] ?? "unknown";
  const lines = rows.map((r) => `| ${r.label} | ${ms(r.a)} | ${ms(r.b)} | ${r.ratio.toFixed(2)} | ${ms(r.first)} | ${ms(r.peerFirst)} | ${kib(r.code)} |`);
  writeFileSync(
    page,
    `# Speed of WebAssembly

Made by \`./x web bench\` on ${new Date().toISOString().slice(0, 10)}; do not edit. Machine: ${cpu}, one thread on a pinned core, Node.js ${process.version} (V8 ${process.versions.v8}). infc compiles for
\`${machine}\`; the peer is ONNX Runtime Web ${version} (its WebAssembly backend with SIMD, one thread). Batch 1 (or as the name says), f32 but for quantised models, random inputs; outputs are compared first
(largest difference, relative to the largest value of an output: ${Math.max(...rows.filter((r) => r.worst < 1e-2).map((r) => r.worst)).toExponential(1)}${rows.some((r) => r.worst >= 1e-2) ? `; but ${rows.filter((r) => r.worst >= 1e-2).map((r) => `${r.label} ${r.worst.toExponential(1)}`).join(", ")}` : ""}). Steady runs: medians. First output: from the bytes of a module, and of a model, to the
first output, in a process in which the peer's library is loaded already (but for the first line).

A page loads for infc the module and a script of ${kib(statSync(join(folder, `${rows[0].label}.mjs`)).size)} KiB, for the peer its library of ${(library / 2 ** 20).toFixed(1)} MiB (script and WebAssembly, not compressed) beside the model. Code is what of the module is no weights.

| model | infc, ms | ONNX Runtime Web, ms | infc / peer | first output, infc, ms | peer, ms | code of infc, KiB |
|---|--:|--:|--:|--:|--:|--:|
${lines.join("\n")}
`,
  );
}
