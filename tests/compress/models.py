"""Detectors and a segmenter quantised with the defaults of `infc quantize --data`: models.py INFC MODELS OUT [NAME...].

MODELS has a folder with `model.onnx` for each, in ONNX's test layout. The models are judged on their stored inputs and on two sets of
drawn ones: noise, uniform over the range that the stored inputs have, and pictures, noise of all scales with a brightness and contrast
of its own. Each set is calibrated on 16 draws of its kind with another seed, and judged on 4 draws and, for noise, the stored inputs:
no input serves for both. Prints a table in Markdown; fails if an output has less than 20 dB, more than 10 % of the multiply-accumulates
are in float, or the model is not faster than in f32. Times: see speed.py.
"""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from speed import faster

# Range of the inputs, and shapes that samples take in turn.
MODELS = {
    "ultraface_slim_320": ((-1, 1), [(1, 3, 240, 320)]),
    "fastestdet": ((0, 1), [(1, 3, 352, 352)]),
    "portrait_prisma": ((-1, 1), [(1, 3, 256, 256)]),
    "yunet_n_dynamic": ((-1, 1), [(1, 3, 160, 192), (1, 3, 192, 160), (2, 3, 224, 192), (1, 3, 128, 256)]),
}
CALIBRATION, EVALUATION = (100, 16), (200, 4)


def noise(random, shape, low, high):
    return random.uniform(low, high, shape)


def picture(random, shape, low, high):
    """Noise of all scales, each as strong as it is coarse; colours share most of it."""
    n, c, height, width = shape
    out = np.zeros(shape)
    for scale in (64, 32, 16, 8, 4, 2, 1):
        size = (n, c, -(-height // scale), -(-width // scale))
        grain = random.standard_normal((n, 1, *size[2:])) + 0.3 * random.standard_normal(size)
        out += scale ** 0.7 * grain.repeat(scale, 2).repeat(scale, 3)[:, :, :height, :width]
    out = out / out.std() * random.uniform(0.1, 0.3) + random.uniform(0.3, 0.7)
    return low + (high - low) * out.clip(0, 1)


def write(folder, tensors):
    for i, x in enumerate(tensors):
        to = folder / f"test_data_set_{i}"
        to.mkdir(parents=True, exist_ok=True)
        (to / "input_0.pb").write_bytes(numpy_helper.from_array(x, "x").SerializeToString())


def draws(kind, name, seed, count):
    (low, high), shapes = MODELS[name]
    random = np.random.default_rng(seed)
    return [kind(random, shapes[i % len(shapes)], low, high).astype(np.float32) for i in range(count)]


def stored(model):
    for path in sorted(model.parent.glob("test_data_set_*/input_0.pb")):
        t = onnx.TensorProto()
        t.ParseFromString(path.read_bytes())
        yield numpy_helper.to_array(t)


def main():
    infc, models, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    missed = []
    print("| model | inputs | SQNR of the outputs | MACs in float | file smaller by | f32 | int8 | faster |\n|---|---|---|---|---|---|---|---|")
    for name in sys.argv[4:] or MODELS:
        model = models / name / "model.onnx"
        for kind in (noise, picture):
            folder = out / name / kind.__name__
            calibration, evaluation = folder / "calibration", folder / "evaluation"
            write(calibration, draws(kind, name, *CALIBRATION))
            write(evaluation, draws(kind, name, *EVALUATION) + (list(stored(model)) if kind is noise else []))
            to, report = folder / "int8.onnx", folder / "int8.json"
            subprocess.run([infc, "quantize", model, "--data", calibration, "--evaluate", evaluation, "-o", to, "--report", report],
                           check=True, stdout=subprocess.DEVNULL)
            step = json.loads(report.read_text())["steps"][0]
            # No number: nothing differs.
            sqnr = sorted(float("inf") if o["sqnr_db"] is None else o["sqnr_db"] for o in step["outputs"])
            share = step["after"]["float_macs"] / step["after"]["macs"]
            before, after = faster(infc, model, to, folder, ["--input", f"{input_name(model)}={evaluation}/test_data_set_0/input_0.pb"])
            span = f"{sqnr[0]:.1f} dB" if len(sqnr) == 1 else f"{sqnr[0]:.1f} to {sqnr[-1]:.1f} dB"
            print(f"| {name} | {kind.__name__} | {span} | {100 * share:.1f} % | {step['before']['bytes'] / step['after']['bytes']:.2f}x | "
                  f"{before:.2f} ms | {after:.2f} ms | {before / after:.2f}x |", flush=True)
            for bad, what in ((sqnr[0] < 20, "SQNR"), (share > 0.1, "MACs in float"), (after >= before, "speed")):
                if bad:
                    missed.append(f"{name}, {kind.__name__}: {what}")
    sys.exit("missed: " + "; ".join(missed) if missed else 0)


def input_name(model):
    graph = onnx.load(model).graph
    constants = {t.name for t in graph.initializer}
    return next(i.name for i in graph.input if i.name not in constants)


if __name__ == "__main__":
    main()
