"""The example models quantised by infc and by ONNX Runtime's tools: examples.py INFC OUT [NAME...].

Five calibration subsets of 64 samples each (seeds 1 to 5); accuracy on all other samples. Ours: the default of `infc quantize --data`.
ONNX Runtime's: static QDQ, per channel, min-max, and dynamic. Prints a table in Markdown: mean and spread of the points lost; fails if
ours loses more than 0.3 of them in the mean. Times, of one sample, with the first draw: see speed.py.
"""
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from speed import faster

EXAMPLES = Path(__file__).parents[2] / "examples" / "models"
SEEDS = range(1, 6)
SAMPLES = 64


class Rows(CalibrationDataReader):
    def __init__(self, name, rows):
        self.rows = iter([{name: row[None]} for row in rows])

    def get_next(self):
        return next(self.rows, None)


def evaluation(name):
    arrays = np.load(EXAMPLES / name / "eval.npz")
    if "scale" in arrays:
        return arrays["inputs"].astype(np.float32) * arrays["scale"], arrays["labels"]
    return arrays["inputs"].astype(np.int64), arrays["labels"]


def accuracy(model, inputs, labels):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = sum(int((session.run(None, {name: inputs[i:i + 256]})[0].argmax(1) == labels[i:i + 256]).sum())
                for i in range(0, len(labels), 256))
    return 100 * right / len(labels)


def split(name, seed, out):
    """The samples to calibrate on, drawn with a seed, and all others, as files; and which they are."""
    arrays = np.load(EXAMPLES / name / "eval.npz")
    count = len(arrays["labels"])
    drawn = np.sort(np.random.default_rng(seed).choice(count, SAMPLES, replace=False))
    parts = drawn, np.setdiff1d(np.arange(count), drawn)
    files = [out / f"{name}_{seed}_{part}.npz" for part in ("calibration", "evaluation")]
    for file, rows in zip(files, parts):
        np.savez(file, **{k: v[rows] if v.ndim and len(v) == count else v for k, v in arrays.items()})
    return files, parts


def ours(infc, name, seed, out):
    (calibration, evaluation), _ = split(name, seed, out)
    report = out / f"{name}_{seed}.json"
    subprocess.run([infc, "quantize", EXAMPLES / name / "model.onnx", "--data", calibration, "--evaluate", evaluation,
                    "-o", out / f"{name}_{seed}.onnx", "--report", report], check=True, stdout=subprocess.DEVNULL)
    step = json.loads(report.read_text())["steps"][0]
    before, after = step["accuracy"]
    return 100 * (before - after), step


def theirs(name, seed, inputs, labels, out):
    """Points that both of its ways lose, on the samples that were not calibrated on."""
    model, prepared = EXAMPLES / name / "model.onnx", out / f"{name}_prepared.onnx"
    if not prepared.exists():
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    _, (drawn, others) = split(name, seed, out)
    to = out / f"{name}_{seed}_ort.onnx"
    session = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"])
    quantize_static(str(prepared), str(to), Rows(session.get_inputs()[0].name, inputs[drawn]), quant_format=QuantFormat.QDQ,
                    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    dynamic = out / f"{name}_dynamic.onnx"
    if not dynamic.exists():
        # The tool turns weights around and then trips over their old shapes.
        bare = onnx.load(model)
        del bare.graph.value_info[:]
        onnx.save(bare, dynamic)
        quantize_dynamic(str(dynamic), str(dynamic), per_channel=True)
    base, *others = [accuracy(m, inputs[others], labels[others]) for m in (model, to, dynamic)]
    return [base - other for other in others]


def input_name(name):
    session = onnxruntime.InferenceSession(str(EXAMPLES / name / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.get_inputs()[0].name


def sample(name, inputs, out):
    """The file of one sample."""
    path = out / f"{name}.npy"
    np.save(path, inputs[:1])
    return path


def spread(values):
    return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"


def main():
    infc, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    missed = []
    print("| model | float | ours: points lost | f32 | int8 | faster | smaller | ONNX Runtime static | ONNX Runtime dynamic |\n|---|---|---|---|---|---|---|---|---|")
    for name in sys.argv[3:] or ["glyphs_cnn", "digits_mlp", "language_gru", "snippets_transformer"]:
        inputs, labels = evaluation(name)
        base = accuracy(EXAMPLES / name / "model.onnx", inputs, labels)
        lost, steps = zip(*(ours(infc, name, seed, out) for seed in SEEDS))
        static, dynamic = zip(*(theirs(name, seed, inputs, labels, out) for seed in SEEDS))
        before, after = faster(infc, EXAMPLES / name / "model.onnx", out / f"{name}_{SEEDS[0]}.onnx", out,
                               ["--input", f"{input_name(name)}={sample(name, inputs, out)}"])
        smaller = steps[0]["before"]["bytes"] / steps[0]["after"]["bytes"]
        print(f"| {name} | {base:.2f} % | {spread(lost)} | {before:.4f} ms | {after:.4f} ms | {before / after:.2f}x | {smaller:.2f}x | {spread(static)} | "
              f"{spread(dynamic)} |", flush=True)
        if statistics.mean(lost) > 0.3:
            missed.append(f"{name}: {statistics.mean(lost):.2f} points")
    sys.exit("lost too much: " + "; ".join(missed) if missed else 0)


if __name__ == "__main__":
    main()
