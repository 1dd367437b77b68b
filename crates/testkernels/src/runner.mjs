// Runs kernels of WebAssembly that it reads from standard input, as runner.c does those of other machines: the same requests and answers, of which the place of a
// function is its number, `k0` and so on.
import { readSync, writeSync } from "node:fs";

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
    if (n === 0) process.exit(at === 0 && bytes === 8 ? 0 : 3);
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

const numbers = (n) => [...new BigInt64Array(get(8 * n).buffer)];

for (;;) {
  const [image, entry, scratch, tasks, count, extents] = [...numbers(1), ...numbers(5)].map(Number);
  const sizes = numbers(count).map(Number);
  const values = numbers(extents);
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(get(image)));
  const { memory } = exports;
  // Whatever is not a buffer's is poison, and buffers lie on odd multiples of 8.
  let end = exports.heap.value;
  const take = (bytes) => {
    const at = end;
    end = Math.ceil((end + bytes + 128) / 64) * 64;
    return at;
  };
  const places = sizes.map((bytes) => take(bytes) + 8);
  const [pointers, limits, work] = [take(4 * count), take(8 * extents), take(scratch)];
  const missing = Math.ceil((end - memory.buffer.byteLength) / 65536);
  if (missing > 0) memory.grow(missing);
  const bytes = new Uint8Array(memory.buffer);
  bytes.fill(0xa5, exports.heap.value);
  const view = new DataView(memory.buffer);
  places.forEach((at, i) => {
    view.setUint32(pointers + 4 * i, at, true);
    bytes.set(get(sizes[i]), at);
  });
  values.forEach((value, i) => view.setBigInt64(limits + 8 * i, value, true));
  const status = exports[`k${entry}`](pointers, limits, work, 0n, BigInt(tasks));
  const answer = new Uint8Array(8);
  new DataView(answer.buffer).setBigInt64(0, status, true);
  put(answer);
  places.forEach((at, i) => put(bytes.subarray(at, at + sizes[i])));
}
