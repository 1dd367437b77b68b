"""Quantised models of `infc quantize` against ONNX Runtime: check.py INFC FLOAT.onnx QUANTISED.onnx DATA [COUNT].

For each sample both runtimes run the quantised model. Stored (integer) outputs may be one step off in at most 1 % of their elements.
Float outputs downstream of integers: the same within 40 dB of signal to noise, and the same largest element. To see the steps that the
rule is about, the tensors behind every QuantizeLinear become outputs of both. Also: `onnx.checker` accepts the file, and infc reads its
own file again to the same answers, bit for bit.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper


def samples(model, path, count):
    """The first samples of DATA, as infc reads it: rows of an .npz, cut to the attention mask; or ONNX's test layout."""
    names = [i.name for i in model.graph.input]
    path = Path(path)
    if path.is_dir():
        for folder in sorted(path.glob("test_data_set_*"))[:count]:
            tensors = []
            for j in range(len(names)):
                t = onnx.TensorProto()
                t.ParseFromString((folder / f"input_{j}.pb").read_bytes())
                tensors.append(numpy_helper.to_array(t))
            yield dict(zip(names, tensors))
        return
    arrays = np.load(path)
    types = {i.name: onnx.helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    for i in range(count):
        sample = {}
        for name in names:
            rows = arrays[name] if name in arrays else arrays["inputs"]
            row = rows[i:i + 1]
            if "attention_mask" in arrays and rows.shape == arrays["attention_mask"].shape:
                row = row[:, :int(np.flatnonzero(arrays["attention_mask"][i])[-1]) + 1]
            if "scale" in arrays and types[name] == np.float32:
                row = row.astype(np.float32) * arrays["scale"]
            sample[name] = np.ascontiguousarray(row.astype(types[name]))
        yield sample


def with_stored_outputs(path, to):
    """The model with all quantised activations as further outputs."""
    model = onnx.load(path)
    constants = {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            zero = next(t for t in model.graph.initializer if t.name == node.input[2])
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], zero.data_type, None))
    onnx.save(model, to)
    return onnx.load(to)


def run_infc(infc, model, inputs, folder):
    options = []
    for k, (name, value) in enumerate(inputs.items()):
        np.save(folder / f"in{k}.npy", value)
        options += ["--input", f"{name}={folder / f'in{k}.npy'}"]
    out = folder / "out"
    out.mkdir(exist_ok=True)
    subprocess.run([infc, "run", model, *options, "--output-dir", out], check=True, stdout=subprocess.DEVNULL)
    return out


def main():
    infc, _, quantised, data = sys.argv[1:5]
    count = int(sys.argv[5]) if len(sys.argv) > 5 else 2
    onnx.checker.check_model(quantised, full_check=True)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tapped = folder / "tapped.onnx"
        model = with_stored_outputs(quantised, tapped)
        artifact = folder / "tapped.infc"
        subprocess.run([infc, "compile", tapped, "-o", artifact], check=True, stdout=subprocess.DEVNULL)
        again = folder / "again.onnx"
        subprocess.run([infc, "convert", quantised, again], check=True, stdout=subprocess.DEVNULL)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(tapped, options, providers=["CPUExecutionProvider"])
        worst_share, worst_sqnr = 0.0, float("inf")
        for inputs in samples(model, data, count):
            theirs = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs)))
            out = run_infc(infc, artifact, inputs, folder)
            for name, want in theirs.items():
                got = np.load(next(out.glob(f"{glob_name(name)}.npy")))
                if want.dtype in (np.uint8, np.int8):
                    steps = np.abs(want.astype(np.int32) - got.astype(np.int32))
                    share = float((steps > 0).mean())
                    worst_share = max(worst_share, share)
                    if steps.max(initial=0) > 1 or share > 0.01:
                        failures += 1
                        print(f"  '{name}': up to {steps.max()} steps, {100 * share:.2f} % differ")
                else:
                    noise = float(((want - got).astype(np.float64) ** 2).sum())
                    sqnr = 10 * np.log10(float((want.astype(np.float64) ** 2).sum()) / noise) if noise else float("inf")
                    worst_sqnr = min(worst_sqnr, sqnr)
                    if sqnr < 40:
                        failures += 1
                        print(f"  '{name}': {sqnr:.1f} dB")
            first = run_infc(infc, quantised, inputs, folder)
            kept = {p.name: np.load(p) for p in first.glob("*.npy")}
            run_infc(infc, again, inputs, folder)
            for name in [o.name for o in session.get_outputs()][:len(onnx.load(quantised).graph.output)]:
                file = next(first.glob(f"{glob_name(name)}.npy"))
                if kept[file.name].tobytes() != np.load(file).tobytes():
                    failures += 1
                    print(f"  '{name}': exported and imported again, it differs")
        print(f"{quantised}: at most {100 * worst_share:.3f} % of stored values one step off, floats {worst_sqnr:.1f} dB or better")
    sys.exit(1 if failures else 0)


def glob_name(name):
    """infc's file name of an output: what is no letter, digit, dot, dash or underscore is replaced."""
    return "".join(c if c.isalnum() or c in "._-" else "?" for c in name)


if __name__ == "__main__":
    main()
