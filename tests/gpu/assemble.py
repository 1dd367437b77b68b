"""Assembles the PTX of models with NVIDIA's `ptxas`, for every architecture: `assemble.py INFC PTXAS SNAPSHOT CACHE [--write] FOLDER|MODEL... [NAME...]`.

For each `model.onnx` in the folders, each ONNX file, and products of large matrices made here: compiles it with `--emit ptx`, assembles its kernels, and takes
registers and spills of each from what `ptxas -v` says. Kernels that were assembled before are not again: what was said of them lies in CACHE by
their text. The snapshot holds a line for each model, architecture and precision of products; models that are here and in it are
compared, `--write` writes their lines. No kernel with matrix instructions may spill, and none of `wgmma` may be made to wait for each other. With names: those models alone.
"""
import concurrent.futures, hashlib, json, os, pathlib, re, subprocess, sys, tempfile

MODES = [("sm80", "f32"), ("sm90a", "f32"), ("sm80", "tf32"), ("sm90a", "tf32"), ("sm80", "bf16"), ("sm80", "f16"), ("sm90a", "bf16")]
# Products made here: more modes, and those that are for warpgroups alone.
MORE_MODES = {"product_f32": [("sm90a", "f16")]}
ONLY_MODES = {"product_bf16_4096": [("sm90a", "f32")], "product_u8_i8_4096": [("sm90a", "f32")]}


def field(number, value):
    """A field of a protobuf message: a number, text, or a message's bytes."""
    def varint(n):
        out = b""
        while n >= 128:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def product(operator, dtypes, size):
    """An ONNX model of one product of square matrices; dtypes of a, b and the result by their numbers in ONNX."""
    def port(name, dtype):
        shape = field(1, field(1, size)) * 2
        return field(1, name) + field(2, field(1, field(1, dtype) + field(2, shape)))

    node = field(1, "a") + field(1, "b") + field(2, "y") + field(4, operator)
    a, b, y = dtypes
    graph = field(1, node) + field(2, "product") + field(11, port("a", a)) + field(11, port("b", b)) + field(12, port("y", y))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


PRODUCTS = {
    "product_f32": ("MatMul", (1, 1, 1), 1024),
    "product_f16": ("MatMul", (10, 10, 10), 1024),
    "product_bf16": ("MatMul", (16, 16, 16), 1024),
    "product_u8_i8": ("MatMulInteger", (2, 3, 6), 1024),
    "product_bf16_4096": ("MatMul", (16, 16, 16), 4096),
    "product_u8_i8_4096": ("MatMulInteger", (2, 3, 6), 4096),
}


def entries(text):
    """The kernels of a module, each with the name `kernel`; and what stands before all of them."""
    parts = re.split(r"^(?=\.visible \.entry )", text, flags=re.M)
    head = "".join(l + "\n" for l in parts[0].splitlines() if not l.startswith("//"))
    named = lambda body: re.sub(r"\bk\d+(?=[(_])", "kernel", "\n".join(l for l in body.splitlines() if not l.startswith("//")))
    return head, [named(p) for p in parts[1:]]


def spoken(ptxas, arch, head, kernels, cache, folder):
    """Registers and bytes spilled of each kernel, and what it is warned of. Those not in the cache are assembled as one module."""
    version = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    key = lambda body: hashlib.sha256("\0".join([version, arch, head, body]).encode()).hexdigest()
    keys = [key(k) for k in kernels]
    new = {k: body for k, body in zip(keys, kernels) if not (cache / k).exists()}
    if new:
        text = folder / "kernels.ptx"
        text.write_text(head + "\n".join(re.sub(r"\bkernel(?=[(_])", f"k{k}", body) for k, body in new.items()))
        done = subprocess.run([ptxas, "-arch", arch, "-v", text, "-o", folder / "kernels.cubin"], capture_output=True, text=True)
        if done.returncode:
            raise ValueError("\n".join(done.stderr.strip().splitlines()[:3]))
        said, name = {}, None
        for line in done.stderr.splitlines():
            if found := re.search(r"Compiling entry function 'k(\w+)'", line):
                name = found[1]
                said.setdefault(name, [0, 0])
            if "Potential Performance Loss" in line:
                found = re.search(r"'k(\w+)'", line)
                for k in [found[1]] if found else new:
                    said.setdefault(k, [0, 0]).append(re.sub(r"\bk\w{64}\b", "kernel", line.strip()))
            if found := re.search(r"(\d+) bytes spill stores", line):
                said[name][1] = int(found[1])
            if found := re.search(r"Used (\d+) registers", line):
                said[name][0] = int(found[1])
        for k in new:
            made = cache / f"{k}.{os.getpid()}.{folder.name}"
            made.write_text(json.dumps(said[k]))
            made.rename(cache / k)
    return [json.loads((cache / k).read_text()) for k in keys]


def assemble(infc, ptxas, model, machine, math, cache):
    """The line of a module, and what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        text = folder / "module.ptx"
        compiled = [infc, "compile", model, "--emit", "ptx", "--target", f"nvidia-{machine}", "--math", math, "-o", text]
        done = subprocess.run(compiled, capture_output=True, text=True)
        if done.returncode:
            return None, done.stderr.strip().splitlines()[:3]
        head, kernels = entries(text.read_text())
        try:
            said = spoken(ptxas, machine.replace("sm", "sm_"), head, kernels, cache, folder)
        except ValueError as e:
            return None, [str(e)]
    matrix = [bool(re.search(r"\b(mma\.sync|wgmma\.mma)", k)) for k in kernels]
    registers, spilled = max((r for r, *_ in said), default=0), sum(s for _, s, *_ in said)
    in_matrix = sum(s for (_, s, *_), m in zip(said, matrix) if m)
    line = f"{len(kernels)} kernels, {sum(matrix)} with matrix instructions, {registers} registers at most, {spilled} bytes spilled"
    problems = [f"{in_matrix} bytes are spilled in kernels with matrix instructions"] if in_matrix else []
    return line, problems + [w for _, _, *warnings in said for w in warnings]


def name_of(model):
    return model.parent.name if model.stem == "model" else model.stem


def write(path, lines):
    head = "# What `ptxas` says of the modules of models: written by `./x ptx --write`, held by `./x ptx`.\n"
    made = path.with_suffix(".made")
    made.write_text(head + "".join(f"{k}: {v}\n" for k, v in sorted(lines.items())))
    made.rename(path)


def main():
    args = [a for a in sys.argv[1:] if a != "--write"]
    infc, ptxas, snapshot, cache, *rest = args
    path, cache, writes = pathlib.Path(snapshot), pathlib.Path(cache), "--write" in sys.argv
    cache.mkdir(parents=True, exist_ok=True)
    known = dict(l.split(": ", 1) for l in path.read_text().splitlines() if ": " in l and not l.startswith("#")) if path.exists() else {}
    places = [pathlib.Path(a) for a in rest if pathlib.Path(a).exists()]
    wanted = {a for a in rest if not pathlib.Path(a).exists()}
    models = [m for p in places for m in (sorted(p.glob("**/model.onnx")) if p.is_dir() else [p])]
    with tempfile.TemporaryDirectory() as folder:
        for name, (operator, dtypes, size) in PRODUCTS.items():
            made = pathlib.Path(folder, name, "model.onnx")
            made.parent.mkdir()
            made.write_bytes(product(operator, dtypes, size))
            models.append(made)
        if missing := wanted - {name_of(m) for m in models}:
            sys.exit(f"no model is named {', '.join(sorted(missing))}; there are {', '.join(sorted(map(name_of, models)))}")
        models = [m for m in models if not wanted or name_of(m) in wanted]
        found, wrong = {}, []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            modes = lambda name: ONLY_MODES.get(name, MODES + MORE_MODES.get(name, []))
            jobs = [(m, *mode, pool.submit(assemble, infc, ptxas, m, *mode, cache)) for m in models for mode in modes(name_of(m))]
            for model, machine, math, job in jobs:
                key = f"{name_of(model)} {machine} {math}"
                line, problems = job.result()
                wrong += [f"{key}: {p}" for p in problems]
                if line is None:
                    wrong.append(f"{key}: not assembled")
                    continue
                print(f"{key}: {line}", flush=True)
                found[key] = line
                if writes:
                    write(path, {**known, **found})
                elif known.get(key, line) != line:
                    wrong.append(f"{key}: the snapshot says '{known[key]}'")
    for w in wrong:
        print(f"wrong: {w}", file=sys.stderr)
    new = sum(key not in known for key in found)
    print(f"{len(models)} models, {len(found)} modules assembled, {new} not in the snapshot before, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
