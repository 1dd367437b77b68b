"""A network as large as the one that tags jets in the literature (16, 64, 32, 32, 5), with random weights: jets.py FILE.onnx"""

import sys

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

SIZES = [16, 64, 32, 32, 5]

rng = np.random.default_rng(1)
nodes, weights, at = [], [], "x"
for k, (i, o) in enumerate(zip(SIZES, SIZES[1:])):
    weights.append(numpy_helper.from_array((rng.uniform(-1, 1, (i, o)) * np.sqrt(3 / i)).astype(np.float32), f"w{k}"))
    weights.append(numpy_helper.from_array(rng.uniform(-0.1, 0.1, o).astype(np.float32), f"b{k}"))
    last = k + 2 == len(SIZES)
    nodes.append(helper.make_node("Gemm", [at, f"w{k}", f"b{k}"], ["y" if last else f"a{k}"], name=f"fc{k}"))
    if not last:
        nodes.append(helper.make_node("Relu", [f"a{k}"], [f"r{k}"], name=f"relu{k}"))
    at = f"r{k}"
x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", SIZES[0]])
y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", SIZES[-1]])
model = helper.make_model(helper.make_graph(nodes, "jets", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
save(model, sys.argv[1])
