const PAGE = 65536;

/** What the model takes and gives: names, types of elements, dims, and of dims that are open the most that there is memory for. */
export const info = { name: MODEL.name, inputs: MODEL.inputs.map(port), outputs: MODEL.outputs.map(port), dims: MODEL.dims };

function port({ name, dtype, dims }) {
  return { name, dtype, dims };
}

/** A run that failed: the message says which check of which node, or what is wrong with the inputs. */
export class ModelError extends Error {
  name = "ModelError";
}

/** The model with its memory. One run at a time; any number of models may be loaded. */
export class Model {
  #exports;
  #pointers = {};
  #told = {};

  /** From an instance of the module; `load` makes it. */
  constructor({ exports }, weights) {
    this.#exports = exports;
    const { memory } = exports;
    let end = exports.heap.value;
    const take = (bytes) => {
      const at = end;
      end = Math.ceil((end + bytes) / MODEL.align) * MODEL.align;
      return at;
    };
    const place = (ports) => ports.map((p) => ({ ...p, at: take(p.bytes), told: p.changes ? take(8 * p.dims.length) : 0 }));
    const [inputs, outputs] = [place(MODEL.inputs), place(MODEL.outputs)];
    const at = this.#pointers;
    Object.assign(at, { inputs: take(4 * inputs.length), outputs: take(8 * outputs.length), state: take(MODEL.state), arena: take(MODEL.arena) });
    const missing = Math.ceil((end - memory.buffer.byteLength) / PAGE);
    if (missing > 0) memory.grow(missing);
    if (weights) new Uint8Array(memory.buffer, exports.constants.value, MODEL.weights).set(weights);
    // Nothing grows the memory from here on, so that these stay.
    const pointers = new DataView(memory.buffer);
    inputs.forEach((p, i) => pointers.setUint32(at.inputs + 4 * i, p.at, true));
    // An output whose size changes has a second pointer, to where a run writes its dims.
    outputs.flatMap((p) => (p.changes ? [p.at, p.told] : [p.at])).forEach((p, i) => pointers.setUint32(at.outputs + 4 * i, p, true));
    for (const p of outputs) if (p.changes) this.#told[p.name] = new BigInt64Array(memory.buffer, p.told, p.dims.length);
    const views = (ports) =>
      Object.fromEntries(
        ports.map((p) => {
          const Type = globalThis[p.array];
          return [p.name, new Type(memory.buffer, p.at, p.bytes / Type.BYTES_PER_ELEMENT)];
        }),
      );
    /** The inputs' memory: what is written here is what `execute` takes. There is room for the largest dims; elements lie at its beginning. */
    this.inputs = Object.freeze(views(inputs));
    /** The outputs' memory: what the last run has written, as much as `dims` say. */
    this.outputs = Object.freeze(views(outputs));
    this.reset();
  }

  /**
   * Runs on arrays of numbers, one for each input in row-major order; inputs that are left out are what they were. Dims that are open are given by name, or follow from the number of elements
   * of an input that has no other one. Gives an array for each output; `dims` says how it is to be read.
   */
  run(given = {}, dims = {}) {
    for (const name of Object.keys(given)) {
      if (!Object.hasOwn(this.inputs, name)) throw new ModelError(`there is no input '${name}', but ${list(MODEL.inputs)}`);
    }
    const sizes = sizesOf(given, dims);
    for (const { name, dtype, dims, count } of MODEL.inputs) {
      if (!Object.hasOwn(given, name)) continue;
      const [values, input, wanted] = [given[name], this.inputs[name], count(sizes)];
      if (values?.length !== wanted) {
        throw new ModelError(`input '${name}' is ${dtype}[${dims.join(", ")}], ${wanted} numbers, and ${values?.length} are given`);
      }
      if (ArrayBuffer.isView(values) && values.constructor !== input.constructor) {
        throw new ModelError(`input '${name}' is ${dtype}, a ${input.constructor.name}, and a ${values.constructor.name} is given`);
      }
      input.set(values);
    }
    this.execute(sizes);
    return Object.fromEntries(
      MODEL.outputs.map(({ name, changes, parts }) => {
        const size = changes ? this.dims[name].reduce((n, d) => n * d, parts) : undefined;
        return [name, this.outputs[name].slice(0, size)];
      }),
    );
  }

  /** Runs on what is in `inputs`, and writes `outputs`: nothing is copied. Dims that are open are given by name. */
  execute(dims = {}) {
    const { inputs, outputs, state, arena } = this.#pointers;
    const sizes = MODEL.dims.map(({ name, most }) => size(name, dims[name], most));
    const status = this.#exports.run(inputs, outputs, ...sizes.map(BigInt), ...(MODEL.state ? [state] : []), arena);
    if (status !== 0) throw new ModelError(this.#message(status));
  }

  /** The dims of the outputs, of those that change after the last run. */
  get dims() {
    return Object.fromEntries(MODEL.outputs.map(({ name, changes, dims }) => [name, changes ? Array.from(this.#told[name], Number) : dims]));
  }

  /** Starts over: what one run keeps for the next is zeros again. */
  reset() {
    if (MODEL.state) this.#exports.reset(this.#pointers.state);
  }

  #message(status) {
    const bytes = new Uint8Array(this.#exports.memory.buffer);
    const at = this.#exports.message(status);
    return new TextDecoder().decode(bytes.subarray(at, bytes.indexOf(0, at)));
  }
}

const list = (ports) => ports.map((p) => `'${p.name}'`).join(", ");

/** A dim, if it can be one. */
function size(name, value, most) {
  if (value === undefined) throw new ModelError(`dim '${name}' is not known: give it to the run, { ${JSON.stringify(name)}: SIZE }`);
  if (!Number.isInteger(value) || value < 0 || value > most) throw new ModelError(`dim '${name}' is ${value}, and there is memory for ${most}`);
  return value;
}

/** The dims of a run: as they are given, or by the elements of an input whose only open dim it is. */
function sizesOf(given, dims) {
  for (const name of Object.keys(dims)) {
    if (!MODEL.dims.some((d) => d.name === name)) throw new ModelError(`there is no dim '${name}'${MODEL.dims.length ? `, but ${list(MODEL.dims)}` : ""}`);
  }
  const all = MODEL.dims.map(({ name, most }) => {
    const tells = (p) => Object.hasOwn(given, p.name) && p.dims.filter((d) => typeof d !== "number").join() === name;
    const input = MODEL.inputs.find(tells);
    const others = (p) => p.dims.reduce((n, d) => (typeof d === "number" ? n * d : n), p.parts);
    return [name, size(name, dims[name] ?? (input && given[input.name].length / others(input)), most)];
  });
  return Object.fromEntries(all);
}

/** Bytes of a file: of a URL, by `fetch`, in Node.js from the disk; of a response; or the bytes themselves. */
async function bytesOf(source) {
  source = await source;
  if (source instanceof URL && source.protocol === "file:" && globalThis.process?.versions?.node) {
    return (await import("node:fs/promises")).readFile(source);
  }
  if (source instanceof URL || typeof source === "string") source = await fetch(source);
  if (typeof Response !== "undefined" && source instanceof Response) {
    if (!source.ok) throw new ModelError(`${source.url}: ${source.status} ${source.statusText}`);
    return new Uint8Array(await source.arrayBuffer());
  }
  return ArrayBuffer.isView(source) ? source : new Uint8Array(source);
}

/**
 * Loads the model. `module` is where its code is: a URL, a response of `fetch`, bytes, or a WebAssembly.Module that was made before; the file beside this one if nothing is
 * said. `weights` likewise, for models whose weights are in a file of their own.
 */
export async function load({ module = codeFile(), weights = weightsFile() } = {}) {
  const [code, data] = await Promise.all([module instanceof WebAssembly.Module ? module : bytesOf(module), weights ? bytesOf(weights) : undefined]);
  if (MODEL.weights && data?.length !== MODEL.weights) {
    throw new ModelError(`the weights have ${MODEL.weights} bytes, and ${data?.length ?? 0} are given`);
  }
  const compiled = code instanceof WebAssembly.Module ? code : await WebAssembly.compile(code);
  return new Model(await WebAssembly.instantiate(compiled, {}), data);
}
