"""The example models quantised by infc and by ONNX Runtime's tools: examples.py INFC OUT [NAME...].

Five calibration subsets of 64 samples each (seeds 1 to 5); accuracy on all held-out samples. Ours: the default of `infc quantize --data`.
ONNX Runtime's: static QDQ, per channel, min-max, and dynamic. Prints a table in Markdown: mean and spread of the points lost.
"""
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

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


def ours(infc, name, seed, out):
    data, report = EXAMPLES / name / "eval.npz", out / f"{name}_{seed}.json"
    subprocess.run([infc, "quantize", EXAMPLES / name / "model.onnx", "--data", data, "--samples", str(SAMPLES), "--seed", str(seed),
                    "--evaluate", data, "-o", out / f"{name}_{seed}.onnx", "--report", report], check=True,
                   stdout=subprocess.DEVNULL)
    step = json.loads(report.read_text())["steps"][0]
    before, after = step["accuracy"]
    return 100 * (before - after), step


def theirs(name, seed, inputs, out):
    model, prepared = EXAMPLES / name / "model.onnx", out / f"{name}_prepared.onnx"
    if not prepared.exists():
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    rows = inputs[np.random.default_rng(seed).choice(len(inputs), SAMPLES, replace=False)]
    to = out / f"{name}_{seed}_ort.onnx"
    session = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"])
    quantize_static(str(prepared), str(to), Rows(session.get_inputs()[0].name, rows), quant_format=QuantFormat.QDQ,
                    per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    return to


def spread(values):
    return f"{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}"


def main():
    infc, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    print("| model | float | ours: points lost | faster | smaller | ONNX Runtime static | ONNX Runtime dynamic |\n|---|---|---|---|---|---|---|")
    for name in sys.argv[3:] or ["glyphs_cnn", "digits_mlp", "language_gru", "snippets_transformer"]:
        inputs, labels = evaluation(name)
        base = accuracy(EXAMPLES / name / "model.onnx", inputs, labels)
        lost, steps = zip(*(ours(infc, name, seed, out) for seed in SEEDS))
        static = [base - accuracy(theirs(name, seed, inputs, out), inputs, labels) for seed in SEEDS]
        dynamic = out / f"{name}_dynamic.onnx"
        quantize_dynamic(str(EXAMPLES / name / "model.onnx"), str(dynamic), per_channel=True)
        faster = statistics.median(s["before"]["latency_ms"] / s["after"]["latency_ms"] for s in steps)
        smaller = steps[0]["before"]["bytes"] / steps[0]["after"]["bytes"]
        print(f"| {name} | {base:.2f} % | {spread(lost)} | {faster:.2f}x | {smaller:.2f}x | {spread(static)} | "
              f"{base - accuracy(dynamic, inputs, labels):.2f} |", flush=True)


if __name__ == "__main__":
    main()
