"""Products with sparse weights beside dense ones: sparse.py INFC OUT.

One row times layers of 768x3072 and 3072x768, their weights set to 0 by `infc prune` without data. Prints a table in Markdown; fails where
an artifact with sparse weights is not as small and fast beside the dense one as its kind should be: at all where half of the weights are 0, a fifth of the size
and one and a half times the speed where 90 % are. Times: see speed.py.
"""
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from speed import faster

SHAPES = [(768, 3072), (3072, 768)]
# What is pruned, with the most of the size and the least of the speed that come of it.
KINDS = [("half of the weights 0", ["--kind", "unstructured", "--sparsity", "0.5"], 1, 1), ("two of four", ["--kind", "2:4"], 1, 1),
         ("90 % of the weights 0", ["--kind", "unstructured", "--sparsity", "0.9"], 0.2, 1.5),
         ("90 % in blocks", ["--kind", "block", "--sparsity", "0.9"], 0.2, 1.5)]


def layer(inputs, outputs, path):
    weights = np.random.default_rng(inputs).standard_normal((inputs, outputs), dtype=np.float32) / inputs**0.5
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs])], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def main():
    infc, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    missed = []
    print("| layer | weights | size | dense | sparse | speed |\n|---|---|---|---|---|---|")
    for inputs, outputs in SHAPES:
        dense = layer(inputs, outputs, out / f"{inputs}x{outputs}.onnx")
        for what, options, most, least in KINDS:
            sparse = out / "sparse.onnx"
            subprocess.run([infc, "prune", dense, *options, "-o", sparse], check=True, stdout=subprocess.DEVNULL)
            before, after = faster(infc, dense, sparse, out)
            size = (out / "after.infc").stat().st_size / (out / "before.infc").stat().st_size
            print(f"| {inputs}x{outputs} | {what} | {size:.2f} | {1000 * before:.1f} us | {1000 * after:.1f} us | {before / after:.2f} |", flush=True)
            if size > most or size >= 1 or before < least * after or before <= after:
                missed.append(f"{inputs}x{outputs}, {what}")
    sys.exit("not as small and fast as asked: " + "; ".join(missed) if missed else 0)


if __name__ == "__main__":
    main()
