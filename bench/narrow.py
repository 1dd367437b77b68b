"""Makes decoders with weights of 4 bits as the model builder of onnxruntime-genai writes them, with seeded random weights: `narrow.py OUT_DIR`.

Four layers of the sizes of a Llama of a billion parameters: grouped-query attention with rotary embedding over a cache, MatMulNBits in blocks of 32 whose accuracy
level (4) lets data be rounded to 8 bits. `llama_int4_step` makes one token after 256 others, `llama_int4_prompt` reads 128 tokens after 64.

Needs: numpy onnx
"""
import pathlib
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper

MS = "com.microsoft"
LAYERS, WIDTH, HIDDEN, HEADS, SHARED, WORDS, BLOCK, LONGEST = 4, 2048, 5632, 32, 4, 8000, 32, 1024
HEAD = WIDTH // HEADS


class Network:
    def __init__(self):
        self.numbers = numpy.random.default_rng(5)
        self.nodes, self.held = [], []

    def const(self, name, array):
        self.held.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op, inputs, outputs, domain="", **attributes):
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def product(self, x, name, depth, columns):
        packed = self.numbers.integers(0, 256, (columns, depth // BLOCK, BLOCK // 2), dtype=numpy.uint8)
        scales = (self.numbers.uniform(0.5, 1.5, columns * depth // BLOCK) * 0.3 / depth**0.5).astype(numpy.float32)
        operands = [x, self.const(f"{name}_weights", packed), self.const(f"{name}_scales", scales)]
        return self.node("MatMulNBits", operands, [name], MS, K=depth, N=columns, bits=4, block_size=BLOCK, accuracy_level=4)

    def gains(self, name):
        return self.const(f"{name}_gains", self.numbers.uniform(0.9, 1.1, WIDTH).astype(numpy.float32))

    def joined(self, x, residual, name, last=False):
        """The normalised sum, and the sum."""
        outputs = [name] if last else [name, "", "", f"{name}_sum"]
        self.node("SkipSimplifiedLayerNormalization", [residual, x, self.gains(name)], outputs, MS, epsilon=1e-5)
        return name, f"{name}_sum"


def make(path, tokens, before):
    if path.exists():
        return
    net, total = Network(), tokens + before
    value = lambda name, dtype, dims: helper.make_tensor_value_info(name, dtype, dims)
    inputs, outputs = [value("tokens", TensorProto.INT64, [1, tokens])], [value("words", TensorProto.FLOAT, [1, tokens, WORDS])]
    net.const("table", net.numbers.standard_normal((WORDS, WIDTH)).astype(numpy.float32))
    net.const("length", numpy.array([total - 1], numpy.int32))
    net.const("total", numpy.array(total, numpy.int32))
    angles = numpy.outer(numpy.arange(LONGEST), 10000.0 ** -(numpy.arange(0, HEAD, 2) / HEAD))
    net.const("cos", numpy.cos(angles).astype(numpy.float32))
    net.const("sin", numpy.sin(angles).astype(numpy.float32))
    residual = net.node("Gather", ["table", "tokens"], ["rows"])
    normal = net.node("SimplifiedLayerNormalization", [residual, net.gains("first")], ["first"], axis=-1, epsilon=1e-5, stash_type=1)
    for k in range(LAYERS):
        if k > 0:
            normal, residual = net.joined(narrow, residual, f"before_{k}")
        query, key, values = (net.product(normal, f"{n}_{k}", WIDTH, w) for n, w in [("query", WIDTH), ("key", SHARED * HEAD), ("value", SHARED * HEAD)])
        cache, after = [f"keys_{k}", f"values_{k}"], [f"new_keys_{k}", f"new_values_{k}"]
        inputs += [value(c, TensorProto.FLOAT, [1, SHARED, before, HEAD]) for c in cache]
        outputs += [value(c, TensorProto.FLOAT, [1, SHARED, total, HEAD]) for c in after]
        operands = [query, key, values, *cache, "length", "total", "cos", "sin"]
        seen = net.node("GroupQueryAttention", operands, [f"seen_{k}", *after], MS, num_heads=HEADS, kv_num_heads=SHARED, do_rotary=1)
        normal, residual = net.joined(net.product(seen, f"out_{k}", WIDTH, WIDTH), residual, f"between_{k}")
        gate, wide = (net.product(normal, f"{n}_{k}", WIDTH, HIDDEN) for n in ("gate", "wide"))
        open_ = net.node("Mul", [gate, net.node("Sigmoid", [gate], [f"sigmoid_{k}"])], [f"silu_{k}"])
        narrow = net.product(net.node("Mul", [open_, wide], [f"both_{k}"]), f"narrow_{k}", HIDDEN, WIDTH)
    normal, _ = net.joined(narrow, residual, "last", last=True)
    net.product(normal, "words", WIDTH, WORDS)
    graph = helper.make_graph(net.nodes, path.stem, inputs, outputs, net.held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)], ir_version=10)
    part = path.with_suffix(".part")
    onnx.save(model, part)
    part.rename(path)
    print(f"{path}: {path.stat().st_size >> 20} MiB", flush=True)


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    make(out / "llama_int4_step.onnx", 1, 256)
    make(out / "llama_int4_prompt.onnx", 128, 64)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
