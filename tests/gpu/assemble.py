"""Assembles the PTX of models with NVIDIA's `ptxas`, for every architecture: `assemble.py INFC PTXAS SNAPSHOT [--write] FOLDER...`.

For each folder with a `model.onnx`, and for products of large matrices made here: compiles it with `--emit ptx`, assembles the module, and takes registers and spills of each kernel
from what `ptxas -v` says. The snapshot holds a line for each model, architecture and precision of products; models that are here are
compared with it, `--write` replaces their lines. No kernel with matrix instructions may spill.
"""
import pathlib, re, subprocess, sys, tempfile

MODES = [("sm80", "f32"), ("sm90a", "f32"), ("sm80", "tf32"), ("sm80", "bf16"), ("sm80", "f16")]


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


def product(operator, dtypes, size=1024):
    """An ONNX model of one product of square matrices; dtypes of a, b and the result by their numbers in ONNX."""
    def port(name, dtype):
        shape = field(1, field(1, size)) * 2
        return field(1, name) + field(2, field(1, field(1, dtype) + field(2, shape)))

    node = field(1, "a") + field(1, "b") + field(2, "y") + field(4, operator)
    a, b, y = dtypes
    graph = field(1, node) + field(2, "product") + field(11, port("a", a)) + field(11, port("b", b)) + field(12, port("y", y))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


PRODUCTS = {
    "product_f32": ("MatMul", (1, 1, 1)),
    "product_f16": ("MatMul", (10, 10, 10)),
    "product_bf16": ("MatMul", (16, 16, 16)),
    "product_u8_i8": ("MatMulInteger", (2, 3, 6)),
}


def assemble(infc, ptxas, model, machine, math, folder):
    text = pathlib.Path(folder, "module.ptx")
    compiled = [infc, "compile", str(model), "--emit", "ptx", "--target", f"nvidia-{machine}", "--math", math, "-o", str(text)]
    done = subprocess.run(compiled, capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[:3]
    arch = machine.replace("sm", "sm_")
    done = subprocess.run([ptxas, "-arch", arch, "-v", str(text), "-o", str(pathlib.Path(folder, "module.cubin"))], capture_output=True, text=True)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[:3]
    matrix = {n for n, body in re.findall(r"\.entry (k\d+)\((.*?)\n}", text.read_text(), re.S) if "mma.sync" in body}
    kernels = registers = spilled = matrix_spilled = 0
    name = None
    for line in done.stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
            kernels += 1
        if found := re.search(r"(\d+) bytes spill stores", line):
            spilled += int(found[1])
            matrix_spilled += int(found[1]) if name in matrix else 0
        if found := re.search(r"Used (\d+) registers", line):
            registers = max(registers, int(found[1]))
    line = f"{kernels} kernels, {len(matrix)} with matrix instructions, {registers} registers at most, {spilled} bytes spilled"
    return line, [f"{matrix_spilled} bytes are spilled in kernels with matrix instructions"] if matrix_spilled else []


def write(path, lines):
    head = "# What `ptxas` says of the modules of models: written by `./x ptx --write`, held by `./x ptx`.\n"
    path.write_text(head + "".join(f"{k}: {v}\n" for k, v in sorted(lines.items())))


def main():
    args = [a for a in sys.argv[1:] if a != "--write"]
    infc, ptxas, snapshot, *folders = args
    path = pathlib.Path(snapshot)
    known = dict(l.split(": ", 1) for l in path.read_text().splitlines() if ": " in l and not l.startswith("#")) if path.exists() else {}
    found, wrong = {}, []
    models = sorted(m for f in folders for m in pathlib.Path(f).glob("**/model.onnx"))
    if not models:
        sys.exit("no models")
    with tempfile.TemporaryDirectory() as folder:
        for name, (operator, dtypes) in PRODUCTS.items():
            made = pathlib.Path(folder, name, "model.onnx")
            made.parent.mkdir()
            made.write_bytes(product(operator, dtypes))
            models.append(made)
        for model in models:
            for machine, math in MODES:
                key = f"{model.parent.name} {machine} {math}"
                line, problems = assemble(infc, ptxas, model, machine, math, folder)
                wrong += [f"{key}: {p}" for p in problems]
                if line is None:
                    wrong.append(f"{key}: not assembled")
                    continue
                print(f"{key}: {line}", flush=True)
                found[key] = line
                if "--write" not in sys.argv and known.get(key) != line:
                    wrong.append(f"{key}: the snapshot says '{known.get(key)}'")
            if "--write" in sys.argv:
                write(path, {**known, **found})
    for w in wrong:
        print(f"wrong: {w}", file=sys.stderr)
    print(f"{len(models)} models, {len(found)} modules assembled, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
