"""Models as C code on a Cortex-M: the outputs of QEMU's mps2-an500 (Cortex-M7 with FPU) beside those of this computer and stored ones.

usage: check.py INFC MODEL_FOLDER... [--int8 MODEL_FOLDER:INPUT=ARRAY_OF_eval.npz]

Each model is printed as C (`infc compile --emit c`), compiled by arm-none-eabi-gcc and by cc without any warning, and run on its stored
inputs. All outputs must have the same bytes on both; floats must be within 1e-5 of the stored ones. `--int8` makes an int8 version of a
model with ONNX Runtime's quantiser, whose outputs must also have the bytes that machine code by LLVM gives.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import numpy_helper

HERE = pathlib.Path(__file__).parent
WARNINGS = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-std=c99", "-ffp-contract=off", "-O2"]
ARM = ["arm-none-eabi-gcc", "-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard", "-mthumb", "-ffunction-sections", "-fdata-sections"]
QEMU = ["qemu-system-arm", "-M", "mps2-an500", "-nographic", "-monitor", "none", "-serial", "none"]
QEMU += ["-chardev", "stdio,id=out", "-semihosting-config", "enable=on,target=native,chardev=out", "-kernel"]
TOLERANCE = 1e-5


def run(command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def tensors(folder, kind):
    files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(re.search(r"(\d+)", p.stem)[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(f.read_bytes())) for f in files]


def plain(name):
    return "_".join(part for part in re.sub(r"[^A-Za-z0-9]", "_", name).split("_") if part)


def dims_of(model, sets):
    """The largest value of each symbolic dim, and the values in each set."""
    inputs = [i for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
    values = [{} for _ in sets]
    for number, (ins, _) in enumerate(sets):
        for port, array in zip(inputs, ins):
            for dim, size in zip(port.type.tensor_type.shape.dim, array.shape):
                if dim.dim_param:
                    values[number][dim.dim_param] = size
    names = sorted({name for v in values for name in v})
    return {n: max(v[n] for v in values) for n in names}, values


def c_array(name, array):
    data = np.ascontiguousarray(array).tobytes() or b"\0"
    numbers = ",".join(map(str, data))
    return f"static const union {{ unsigned char bytes[{len(data)}]; uint64_t align; }} {name} = {{{{{numbers}}}}};\n"


def cases(header, sets, values):
    """The file cases.h: inputs, and functions that run a case and write its outputs."""
    def struct(kind):
        body = re.search(r"typedef struct \{([^}]*)\} model_" + kind, header)[1]
        return re.findall(r"^\s+(?:const )?(\w+) \*(\w+);", body, re.M)

    ins = struct("inputs")
    outs = [(t, n) for t, n in struct("outputs") if not (n.endswith("_dims") and t == "int64_t")]
    dims = re.findall(r"int64_t (\w+)", re.search(r"model_run\(([^)]*)\)", header)[1])
    text = f"#define CASES {len(sets)}\n"
    for _, name in outs:
        text += f"static union {{ unsigned char bytes[MODEL_OUT_{name.upper()}_BYTES + 1]; uint64_t align; }} out_{name};\n"
    for k, (arrays, _) in enumerate(sets):
        text += "".join(c_array(f"in_{k}_{i}", a) for i, a in enumerate(arrays))
    text += "static int32_t run_case(int number, void *memory) {\n    model_inputs inputs;\n    model_outputs outputs = {0};\n"
    text += "".join(f"    outputs.{n} = ({t} *)(void *)out_{n}.bytes;\n" for t, n in outs)
    text += "    switch (number) {\n"
    for k in range(len(sets)):
        text += f"    case {k}:\n"
        text += "".join(f"        inputs.{n} = (const {t} *)(const void *)in_{k}_{i}.bytes;\n" for i, (t, n) in enumerate(ins))
        given = [str(next(v for d, v in values[k].items() if plain(d) == name)) for name in dims]
        text += f"        return model_run({', '.join(['&inputs', '&outputs', *given, 'memory'])});\n"
    text += "    default: return -1;\n    }\n}\n"
    text += "static void write_case(int number, void (*write)(const unsigned char *bytes, int64_t count)) {\n    switch (number) {\n"
    for k, (_, wanted) in enumerate(sets):
        text += f"    case {k}:\n" + "".join(f"        write(out_{n}.bytes, {w.nbytes});\n" for (_, n), w in zip(outs, wanted)) + "        break;\n"
    return text + "    default: break;\n    }\n}\n"


def outputs(text, sets):
    lines = iter(text.split("\n"))
    return [[np.frombuffer(bytes.fromhex(next(lines)), w.dtype).reshape(w.shape) for w in wanted] for _, wanted in sets]


def check(infc, folder, work, int8):
    """Runs a model; a line that says how it went."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    sets = [(tensors(d, "input"), tensors(d, "output")) for d in sorted(folder.glob("test_data_set_*"))]
    most, values = dims_of(model, sets)
    run([infc, "compile", path, "--emit", "c", "-o", work / "model.c", *(f"--dim={n}<={v}" for n, v in most.items())])
    header = (work / "model.h").read_text()
    (work / "cases.h").write_text(cases(header, sets, values))
    common = ["-I", work, "-I", HERE, work / "model.c", HERE / "main.c"]
    run(["cc", *WARNINGS, *common, HERE / "host.c", "-o", work / "host", "-lm"])
    run([*ARM, *WARNINGS, "-nostartfiles", "-T", HERE / "link.ld", "-Wl,--gc-sections", *common, HERE / "startup.c", "-o", work / "arm.elf", "-lm"])
    size = run(["arm-none-eabi-size", work / "arm.elf"]).split("\n")[1].split()[0]
    here, there = (outputs(run(command), sets) for command in ([work / "host"], [*QEMU, work / "arm.elf"]))
    worst = 0.0
    for k, (_, wanted) in enumerate(sets):
        for i, want in enumerate(wanted):
            if here[k][i].tobytes() != there[k][i].tobytes():
                sys.exit(f"{folder.name}: set {k}, output {i}: the Cortex-M and this computer give different bytes")
            if not int8:
                error = np.abs(there[k][i].astype(np.float64) - want) / np.maximum(1, np.abs(want))
                worst = max(worst, error.max(initial=0))
    if worst > TOLERANCE:
        sys.exit(f"{folder.name}: an output is {worst:.1e} away from the stored one, more than {TOLERANCE}")
    more = f"largest error {worst:.1e}"
    if int8:
        more = "bytes of machine code by LLVM"
        for k, (arrays, wanted) in enumerate(sets):
            for i, array in enumerate(arrays):
                np.save(work / f"in{i}.npy", array)
            names = [i.name for i in model.graph.input]
            run([infc, "run", path, "--output-dir", work, *(f"--input={n}={work}/in{i}.npy" for i, n in enumerate(names))])
            for i, port in enumerate(model.graph.output):
                if np.load(work / f"{port.name}.npy").tobytes() != there[k][i].tobytes():
                    sys.exit(f"{folder.name}: set {k}, output '{port.name}': the Cortex-M and machine code by LLVM give different bytes")
    return f"ok  {folder.name:24} {len(sets)} sets, same bytes as on this computer, {more}, {int(size) // 1024} KiB of code and weights"


def quantised(folder, name, array, work):
    """An int8 version of a model, in the same layout."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    import onnxruntime

    class Reader(CalibrationDataReader):
        def __init__(self):
            file = np.load(folder / "eval.npz")
            data = file[array].astype(np.float32) * file["scale"]
            self.rows = iter([{name: data[k : k + 8]} for k in range(0, 256, 8)])

        def get_next(self):
            return next(self.rows, None)

    out = work / f"{folder.name}_int8"
    out.mkdir()
    quant_pre_process(folder / "model.onnx", out / "prepared.onnx")
    options = dict(quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, per_channel=True)
    quantize_static(out / "prepared.onnx", out / "model.onnx", Reader(), **options)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    for source in sorted(folder.glob("test_data_set_*")):
        ins = tensors(source, "input")
        results = session.run(None, {i.name: a for i, a in zip(session.get_inputs(), ins)})
        (out / source.name).mkdir()
        for kind, arrays in (("input", ins), ("output", results)):
            for k, a in enumerate(arrays):
                (out / source.name / f"{kind}_{k}.pb").write_bytes(numpy_helper.from_array(a).SerializeToString())
    return out


def main():
    infc, *rest = sys.argv[1:]
    int8 = [rest[i + 1] for i, a in enumerate(rest) if a == "--int8"]
    folders = [pathlib.Path(a) for i, a in enumerate(rest) if a != "--int8" and (i == 0 or rest[i - 1] != "--int8")]
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(temporary)
        for folder in folders:
            print(check(pathlib.Path(infc).resolve(), folder, work, False), flush=True)
        for text in int8:
            folder, names = text.split(":")
            folder = quantised(pathlib.Path(folder), *names.split("="), work)
            print(check(pathlib.Path(infc).resolve(), folder, work, True), flush=True)


main()
