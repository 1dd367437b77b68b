"""Print each example model's accuracy on its held-out samples, by ONNX Runtime: evaluate.py [NAME...]."""
import sys
from pathlib import Path

import numpy as np
import onnxruntime

FOLDER = Path(__file__).parent


def read_evaluation(name):
    """The held-out samples as the model takes them, and their labels."""
    arrays = np.load(FOLDER / name / "eval.npz")
    if "scale" in arrays:
        return arrays["inputs"].astype(np.float32) * arrays["scale"], arrays["labels"]
    return arrays["inputs"].astype(np.int64), arrays["labels"]


def run(name, x):
    """The model's logits for one batch, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(FOLDER / name / "model.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def accuracy(name):
    """Share of the held-out samples that the exported model classifies correctly, by ONNX Runtime."""
    inputs, labels = read_evaluation(name)
    return float((run(name, inputs).argmax(1) == labels).mean())


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.parent.name for path in FOLDER.glob("*/eval.npz")):
        _, labels = read_evaluation(name)
        print(f"{name}: {100 * accuracy(name):.2f} % of {len(labels)}")
