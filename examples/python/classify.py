"""Compiles a trained network, has it read a letter from an image, and times it.

pip install target/wheels/infc-*.whl     # made by `./x wheel`
python examples/python/classify.py [MODEL_FOLDER]
"""

import sys
import time
from pathlib import Path

import numpy as np

import infc

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "models" / "glyphs_cnn"
image = np.load(folder / "sample.npy")
labels = (folder / "labels.txt").read_text().splitlines()

with infc.load(folder / "model.onnx") as model, model.session() as session:
    print(model)
    (source,), (target,) = model.inputs, model.outputs

    scores = session.run({source.name: image})[target.name]
    print(f"this is '{labels[scores[0].argmax()]}'; the label says '{(folder / 'sample_label.txt').read_text().strip()}'")

    times = []
    for _ in range(1000):
        start = time.perf_counter()
        session.run({source.name: image})
        times.append(time.perf_counter() - start)
    print(f"one run takes {1e6 * np.median(times):.0f} us (median of {len(times)})")
