"""Makes one-node models of contrib operators with seeded inputs, and the outputs of the runtimes that define them.

usage: generate.py OUT [PART]     (PART: ort, with onnx and onnxruntime; qonnx, with onnx and qonnx. Default: ort)

Outputs of `com.microsoft` and of old forms come from ONNX Runtime (CPU, graph optimisations off), those of QONNX from the reference
execution of the `qonnx` package. The layout is that of ONNX's node tests; `tol.json` has the tolerance. README.md has the rest.
"""

import json
import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MS = "com.microsoft"
QONNX = "qonnx.custom_op.general"
EXACT = {"rtol": 0.0, "atol": 0.0}
FLOAT = {"rtol": 1e-4, "atol": 1e-5}
HALF = {"rtol": 2e-3, "atol": 2e-3}
# One step of the quantised result: a product of scales may be rounded in another order.
STEP = {"rtol": 0.0, "atol": 1.0}


class Weight:
    """An operand that is an initializer."""

    def __init__(self, array):
        self.array = np.asarray(array)


class Cases:
    def __init__(self, out, run):
        self.out, self.run = pathlib.Path(out), run
        self.count = 0

    def rng(self, name):
        return np.random.default_rng(sum(name.encode()) * 1000003 + len(name))

    def add(self, name, op, operands, attrs=None, outputs=1, domain=MS, tol=FLOAT, opset=21, same_as=None):
        """`operands`: arrays (inputs), Weights, or None; `outputs`: a number, or a list of bools for those that are asked for. `same_as`: other
        operands that mean the same, to ask the runtime with, which does not take these."""
        model, inputs, results = self.model(name, op, operands, attrs, outputs, domain, opset)
        asked, given, _ = self.model(name, op, same_as, attrs, outputs, domain, opset) if same_as else (model, inputs, results)
        got = self.run(asked, dict(given))
        declared = [helper.make_tensor_value_info(r, helper.np_dtype_to_tensor_dtype(g.dtype), g.shape) for r, g in zip([r for r in results if r], got)]
        del model.graph.output[:]
        model.graph.output.extend(declared)
        self.write(name, model, [a for _, a in inputs], got, tol)

    def model(self, name, op, operands, attrs, outputs, domain, opset):
        """A model of one node, with the names and values of its inputs and the names of its results."""
        asked = [True] * outputs if isinstance(outputs, int) else outputs
        inputs, initializers, names = [], [], []
        for k, v in enumerate(operands):
            if v is None:
                names.append("")
                continue
            names.append(f"x{k}")
            if isinstance(v, Weight):
                initializers.append(numpy_helper.from_array(v.array, f"x{k}"))
            else:
                inputs.append((f"x{k}", np.asarray(v)))
        results = [f"y{k}" if there else "" for k, there in enumerate(asked)]
        node = helper.make_node(op, names, results, name="node", domain=domain, **(attrs or {}))
        info = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in inputs]
        empty = [helper.make_empty_tensor_value_info(r) for r in results if r]
        graph = helper.make_graph([node], name, info, empty, initializers)
        sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
        model = helper.make_model(graph, opset_imports=sets, ir_version=min(10, helper.find_min_ir_version_for(sets, True)))
        return model, inputs, results

    def write(self, name, model, inputs, outputs, tol):
        folder = self.out / name / "test_data_set_0"
        folder.mkdir(parents=True, exist_ok=True)
        (self.out / name / "model.onnx").write_bytes(model.SerializeToString())
        (self.out / name / "tol.json").write_text(json.dumps(tol))
        for kind, values, infos in [("input", inputs, model.graph.input), ("output", outputs, model.graph.output)]:
            for k, (value, info) in enumerate(zip(values, infos)):
                data = numpy_helper.from_array(np.asarray(value), info.name).SerializeToString()
                (folder / f"{kind}_{k}.pb").write_bytes(data)
        self.count += 1


def floats(r, *dims, dtype=np.float32, scale=1.0):
    return (r.standard_normal(dims) * scale).astype(dtype)


def scalar(v, dtype=np.float32):
    return Weight(np.array(v, dtype))


# ---- com.microsoft ----


def activations(c):
    for name, op, attrs in [
        ("gelu", "Gelu", {}),
        ("fast_gelu", "FastGelu", {}),
        ("quick_gelu", "QuickGelu", {}),
        ("quick_gelu_alpha", "QuickGelu", {"alpha": 0.7}),
    ]:
        c.add(f"ms_{name}", op, [floats(c.rng(name), 2, 3, 8, scale=3)], attrs)
    for op in ["BiasGelu", "FastGelu"]:
        r = c.rng(op)
        c.add(f"ms_{op.lower()}_bias", op, [floats(r, 2, 3, 8), floats(r, 8)])


def products(c):
    for k, (attrs, a, b) in enumerate(
        [
            ({"alpha": 0.5}, (2, 3, 4), (4, 5)),
            ({"transA": 1}, (2, 4, 3), (2, 4, 5)),
            ({"transB": 1, "alpha": 2.0}, (2, 3, 4), (2, 5, 4)),
            ({"transA": 1, "transB": 1}, (4, 3), (5, 4)),
            ({"transBatchA": 1}, (3, 2, 4), (2, 4, 5)),
            ({"transBatchB": 1, "transB": 1}, (2, 3, 4), (5, 2, 4)),
            ({"transBatchA": 1, "transBatchB": 1, "transA": 1}, (4, 2, 3), (4, 2, 5)),
        ]
    ):
        r = c.rng(f"fused{k}")
        c.add(f"ms_fused_matmul_{k}", "FusedMatMul", [floats(r, *a), floats(r, *b)], attrs)
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    for name, attrs in [
        ("relu", {"activation": "Relu"}),
        ("leaky", {"activation": "LeakyRelu", "activation_params": [0.2]}),
        ("clip", {"activation": "Clip", "activation_params": [-0.5, 0.8]}),
        ("hard", {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]}),
        ("tanh", {"activation": "Tanh"}),
        ("sigmoid", {"activation": "Sigmoid"}),
    ]:
        r = c.rng(name)
        c.add(f"ms_fused_conv_{name}", "FusedConv", [floats(r, 1, 3, 5, 6), Weight(floats(r, 4, 3, 3, 3)), Weight(floats(r, 4))], conv | attrs)
    r = c.rng("sum")
    x, w, b, z = floats(r, 1, 3, 5, 6), floats(r, 4, 3, 3, 3), floats(r, 4), floats(r, 1, 4, 5, 6)
    c.add("ms_fused_conv_sum", "FusedConv", [x, Weight(w), Weight(b), z], conv | {"activation": "Relu"})
    r = c.rng("gemm")
    a, b, d = floats(r, 3, 4), floats(r, 5, 4), floats(r, 5)
    c.add("ms_fused_gemm", "FusedGemm", [a, Weight(b), Weight(d)], {"transB": 1, "alpha": 0.5, "activation": "LeakyRelu", "activation_alpha": 0.1})


def norms(c):
    for name, op, bias, beta, outputs in [
        ("skip", "SkipLayerNormalization", False, True, 1),
        ("skip_bias", "SkipLayerNormalization", True, True, [True, False, False, True]),
        ("skip_no_beta", "SkipLayerNormalization", True, False, 1),
        ("skip_simple", "SkipSimplifiedLayerNormalization", False, False, [True, False, False, True]),
        ("skip_simple_bias", "SkipSimplifiedLayerNormalization", True, False, 1),
    ]:
        r = c.rng(name)
        x, skip, gamma = floats(r, 2, 3, 8), floats(r, 2, 3, 8), floats(r, 8)
        tail = [floats(r, 8) if beta else None] if op == "SkipLayerNormalization" else []
        tail += [floats(r, 8)] if bias else []
        while tail and tail[-1] is None:
            tail.pop()
        c.add(f"ms_{name}", op, [x, skip, gamma] + tail, {"epsilon": 1e-4}, outputs)
    r = c.rng("broadcast")
    c.add("ms_skip_broadcast", "SkipLayerNormalization", [floats(r, 2, 3, 8), floats(r, 1, 3, 8), floats(r, 8)], {"epsilon": 1e-5})
    c.add("simplified_layer_norm", "SimplifiedLayerNormalization", [floats(r, 2, 3, 8), floats(r, 8)], {"axis": -1, "epsilon": 1e-5}, domain="")
    for name, segments, mask, positions, outputs in [
        ("plain", False, False, False, 2),
        ("segments", True, False, False, 2),
        ("mask", True, True, False, 2),
        ("positions", True, False, True, [True, True, True]),
    ]:
        r = c.rng(name)
        ids = r.integers(0, 11, (2, 5)).astype(np.int32)
        operands = [
            ids,
            r.integers(0, 2, (2, 5)).astype(np.int32) if segments else None,
            Weight(floats(r, 11, 8)),
            Weight(floats(r, 7, 8)),
            Weight(floats(r, 2, 8)) if segments else None,
            Weight(floats(r, 8)),
            Weight(floats(r, 8)),
            np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32) if mask else None,
            r.integers(0, 7, (2, 5)).astype(np.int32) if positions else None,
        ]
        while operands[-1] is None:
            operands.pop()
        c.add(f"ms_embed_{name}", "EmbedLayerNormalization", operands, {"epsilon": 1e-5}, outputs)


def attention(c):
    batch, seq, hidden, heads = 2, 4, 8, 2
    for name, attrs, mask, past, bias in [
        ("plain", {}, None, 0, False),
        ("causal", {"unidirectional": 1}, None, 0, False),
        ("scale", {"scale": 0.3}, None, 0, False),
        ("lengths", {}, np.array([3, 4], np.int32), 0, False),
        ("start_end", {}, np.array([3, 4, 1, 0], np.int32), 0, False),
        ("mask2", {}, np.array([[1, 1, 0, 1], [1, 1, 1, 0]], np.int32), 0, False),
        ("mask3", {"mask_filter_value": -50.0}, (np.arange(32).reshape(2, 4, 4) % 3 > 0).astype(np.int32), 0, False),
        ("bias", {}, None, 0, True),
        ("past", {"unidirectional": 1}, None, 3, False),
        ("past_mask", {}, np.array([[1, 1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0]], np.int32), 3, False),
    ]:
        r = c.rng(name)
        operands = [
            floats(r, batch, seq, hidden),
            Weight(floats(r, hidden, 3 * hidden, scale=0.5)),
            Weight(floats(r, 3 * hidden)),
            mask,
            floats(r, 2, batch, heads, past, hidden // heads) if past else None,
            floats(r, batch, heads, seq, seq) if bias else None,
        ]
        while operands[-1] is None:
            operands.pop()
        c.add(f"ms_attention_{name}", "Attention", operands, {"num_heads": heads} | attrs, 2 if past else 1)
    r = c.rng("sizes")
    x, w, b = floats(r, 2, 4, 6), floats(r, 6, 8 + 8 + 12), floats(r, 28)
    c.add("ms_attention_sizes", "Attention", [x, Weight(w), Weight(b)], {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 12]})


def multi_head(c):
    batch, seq, keys, hidden, heads = 2, 4, 5, 8, 2
    for name, attrs, kinds in [
        ("plain", {}, ""),
        ("bias", {}, "b"),
        ("causal", {"unidirectional": 1}, "s"),
        ("lengths", {}, "l"),
        ("mask", {"mask_filter_value": -30.0}, "m"),
        ("mask3", {}, "M"),
        ("attention_bias", {"scale": 0.4}, "a"),
        ("attention_bias_wide", {}, "A"),
        ("past", {}, "p"),
        ("past_bias_causal", {"unidirectional": 1}, "psb"),
        ("cross", {}, "c"),
    ]:
        r = c.rng(name)
        n = seq if "s" in kinds or "p" in kinds else keys
        past = 3 if "p" in kinds else 0
        size = hidden // heads
        total = n + past
        cross = "c" in kinds
        mask = None
        if "l" in kinds:
            mask = np.array([3, 5], np.int32)
        if "m" in kinds:
            mask = (r.random((batch, total)) > 0.3).astype(np.int32)
        if "M" in kinds:
            mask = (r.random((batch, seq, total)) > 0.3).astype(np.int32)
        extra = None
        if "a" in kinds:
            extra = floats(r, 1, heads, seq, total)
        if "A" in kinds:
            extra = floats(r, batch, heads, seq, total)
        kv = (lambda: floats(r, batch, heads, n, size)) if cross else (lambda: floats(r, batch, n, hidden))
        operands = [
            floats(r, batch, seq, hidden),
            kv(),
            kv(),
            floats(r, 3 * hidden) if "b" in kinds else None,
            mask,
            extra,
            floats(r, batch, heads, past, size) if past else None,
            floats(r, batch, heads, past, size) if past else None,
        ]
        while operands[-1] is None:
            operands.pop()
        c.add(f"ms_multi_head_{name}", "MultiHeadAttention", operands, {"num_heads": heads} | attrs, 3 if past else 1)
    # Packed operands, which ONNX Runtime takes on other devices only: its answer for the same operands one by one.
    size = hidden // heads
    for name, attrs, bias, mask in [
        ("packed", {}, False, None),
        ("packed_bias", {"unidirectional": 1}, True, None),
        ("packed_mask", {"scale": 0.4}, False, np.array([3, 4], np.int32)),
        ("packed_keys", {}, False, None),
        ("packed_keys_mask", {}, False, np.array([3, 5], np.int32)),
    ]:
        r = c.rng(name)
        tail = [floats(r, 3 * hidden) if bias else None] + ([mask] if mask is not None else [])
        while tail and tail[-1] is None:
            tail.pop()
        if "keys" in name:
            q, kv = floats(r, batch, seq, hidden), floats(r, batch, keys, heads, 2, size)
            packed = [q, kv, None]
            apart = [q] + [kv[:, :, :, k].reshape(batch, keys, hidden) for k in range(2)]
        else:
            qkv = floats(r, batch, seq, heads, 3, size)
            packed = [qkv, None, None]
            apart = [qkv[:, :, :, k].reshape(batch, seq, hidden) for k in range(3)]
        while not tail and packed[-1] is None:
            packed.pop()
        c.add(f"ms_multi_head_{name}", "MultiHeadAttention", packed + tail, {"num_heads": heads} | attrs, same_as=apart + tail)


def group_query(c):
    heads, kv, size = 4, 2, 16
    angle = np.outer(np.arange(12), 1.0 / 100 ** (np.arange(size // 2) / (size // 2)))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    for name, attrs, batch, seq, past, lengths, packed in [
        ("prompt", {}, 2, 5, 0, [4, 4], False),
        ("prompt_short", {}, 2, 5, 0, [2, 4], False),
        ("packed", {}, 1, 4, 0, [3], True),
        ("rotary", {"do_rotary": 1}, 2, 5, 0, [4, 4], False),
        ("rotary_packed_interleaved", {"do_rotary": 1, "rotary_interleaved": 1}, 1, 4, 0, [3], True),
        ("decode", {"do_rotary": 1}, 2, 1, 6, [4, 6], False),
        ("decode_window", {"local_window_size": 3}, 1, 1, 6, [6], False),
        ("window", {"local_window_size": 2}, 1, 5, 0, [4], False),
        ("softcap", {"softcap": 2.0, "scale": 0.7}, 1, 5, 0, [4], False),
        ("continued", {"do_rotary": 1}, 1, 3, 4, [6], False),
        ("smooth", {"smooth_softmax": 1}, 2, 5, 0, [4, 4], False),
        ("smooth_decode", {"smooth_softmax": 1, "local_window_size": 3}, 1, 1, 6, [6], False),
        ("sink", {}, 2, 5, 0, [2, 4], False),
        ("sink_softcap", {"softcap": 2.0, "scale": 0.7}, 1, 5, 0, [4], False),
        ("sink_decode", {"do_rotary": 1}, 2, 1, 6, [4, 6], False),
    ]:
        r = c.rng(name)
        rotary = attrs.get("do_rotary")
        total = max(lengths) + 1
        operands = [
            floats(r, batch, seq, (heads + 2 * kv) * size if packed else heads * size),
            None if packed else floats(r, batch, seq, kv * size),
            None if packed else floats(r, batch, seq, kv * size),
            floats(r, batch, kv, past, size),
            floats(r, batch, kv, past, size),
            np.array(lengths, np.int32),
            Weight(np.array(total, np.int32)) if past == 0 else np.array(total, np.int32),
            Weight(cos) if rotary else None,
            Weight(sin) if rotary else None,
        ]
        if "sink" in name:
            operands += [None] * (11 - len(operands)) + [Weight(floats(r, heads))]
        while operands[-1] is None:
            operands.pop()
        c.add(f"ms_group_query_{name}", "GroupQueryAttention", operands, {"num_heads": heads, "kv_num_heads": kv} | attrs, 3)


def rotary(c):
    size = 8
    angle = np.outer(np.arange(10), 1.0 / 100 ** (np.arange(size // 2) / (size // 2)))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    for name, dims, positions, attrs in [
        ("offset", (2, 3, 16), np.array([2], np.int64), {}),
        ("positions", (2, 3, 16), np.array([[0, 1, 2], [4, 5, 7]], np.int64), {}),
        ("interleaved", (2, 3, 16), np.array([[0, 1, 2], [4, 5, 7]], np.int64), {"interleaved": 1}),
        ("heads_first", (2, 2, 3, 8), np.array([[0, 1, 2], [4, 5, 7]], np.int64), {}),
    ]:
        c.add(f"ms_rotary_{name}", "RotaryEmbedding", [floats(c.rng(name), *dims), positions, Weight(cos), Weight(sin)], attrs)
    c.add(
        "ms_rotary_part", "RotaryEmbedding",
        [floats(c.rng("part"), 2, 3, 16), np.array([1], np.int64), Weight(cos[:, :2].copy()), Weight(sin[:, :2].copy())],
        {"num_heads": 2, "rotary_embedding_dim": 4},
    )


def narrow_products(c):
    for name, bits, k, n, block, zero, bias in [
        ("plain", 4, 32, 5, 16, None, False),
        ("zero", 4, 64, 3, 32, "packed", False),
        ("odd_blocks", 4, 48, 3, 16, "packed", False),
        ("ragged", 4, 40, 3, 16, "packed", False),
        ("float_zero", 4, 32, 4, 16, "float", False),
        ("bias", 4, 32, 4, 16, None, True),
        ("bits8", 8, 32, 4, 16, "packed", False),
        ("bits8_plain", 8, 32, 4, 32, None, False),
        ("bits2", 2, 32, 4, 16, None, False),
        ("groups", 4, 32, 5, 16, None, False),
        ("groups_bias", 4, 48, 3, 16, None, True),
        ("groups_float_zero", 4, 32, 4, 16, "float", False),
        # From level 4 on, data is rounded to 8 bits in blocks.
        ("level4", 4, 128, 37, 32, None, False),
        ("level4_zero", 4, 192, 40, 64, "packed", True),
        ("level4_bits8", 8, 96, 33, 32, None, False),
        ("level4_bits8_zero", 8, 128, 32, 32, "packed", False),
        ("level4_wide_block", 4, 512, 16, 128, "packed", False),
    ]:
        r = c.rng(name)
        blocks = (k + block - 1) // block
        data = r.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8)
        scales = (np.abs(floats(r, n * blocks)) * 0.1 + 0.01).astype(np.float32)
        zeros = None
        if zero == "packed":
            zeros = Weight(r.integers(0, 256, (n * ((blocks * bits + 7) // 8),)).astype(np.uint8))
        if zero == "float":
            zeros = Weight(floats(r, n * blocks) + 8)
        groups = Weight(r.integers(0, blocks, k).astype(np.int32)) if "groups" in name else None
        operands = [floats(r, 2, 3, k), Weight(data), Weight(scales), zeros, groups, Weight(floats(r, n)) if bias else None]
        while operands[-1] is None:
            operands.pop()
        attrs = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": 4 if "level4" in name else 1}
        c.add(f"ms_matmul_nbits_{name}", "MatMulNBits", operands, attrs, tol={"rtol": 1e-3, "atol": 1e-3})


def bytes_of(r, dtype, *dims):
    low, high = (0, 256) if dtype == np.uint8 else (-128, 128)
    return r.integers(low, high, dims).astype(dtype)


def quantised(c):
    for dtype in [np.uint8, np.int8]:
        tag = dtype.__name__
        zero = 128 if dtype == np.uint8 else 3
        z = lambda v: scalar(v, dtype)
        for op in ["QLinearAdd", "QLinearMul"]:
            r = c.rng(op + tag)
            operands = [bytes_of(r, dtype, 2, 3, 4), scalar(0.05), z(zero), bytes_of(r, dtype, 3, 1), scalar(0.03), z(5), scalar(0.08), z(10)]
            c.add(f"ms_{op.lower()}_{tag}", op, operands, tol=STEP)
        r = c.rng("where" + tag)
        cond = r.random((2, 3, 1)) > 0.5
        operands = [cond, bytes_of(r, dtype, 2, 3, 4), scalar(0.05), z(zero), bytes_of(r, dtype, 3, 1), scalar(0.03), z(5), scalar(0.08), z(10)]
        c.add(f"ms_qlinearwhere_{tag}", "QLinearWhere", operands, tol=STEP)
        for op, attrs in [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.2})]:
            r = c.rng(op + tag)
            c.add(f"ms_{op.lower()}_{tag}", op, [bytes_of(r, dtype, 2, 9), scalar(0.05), z(zero), scalar(0.02), z(4)], attrs, tol=STEP)
        r = c.rng("concat" + tag)
        parts = [bytes_of(r, dtype, 2, 3), scalar(0.1), z(zero), bytes_of(r, dtype, 2, 5), scalar(0.07), z(9)]
        c.add(f"ms_qlinearconcat_{tag}", "QLinearConcat", [scalar(0.12), z(7)] + parts, {"axis": 1}, tol=STEP)
        r = c.rng("softmax" + tag)
        for opset, axis in [(13, -1), (11, 1)]:
            operands = [bytes_of(r, dtype, 2, 3, 5), scalar(0.05), z(zero), scalar(1 / 256), z(0 if dtype == np.uint8 else -128)]
            c.add(f"ms_qlinearsoftmax_{opset}_{tag}", "QLinearSoftmax", operands, {"axis": axis, "opset": opset}, tol=STEP)
        for last in [0, 1]:
            r = c.rng(f"pool{last}{tag}")
            dims = (1, 5, 6, 3) if last else (1, 3, 5, 6)
            operands = [bytes_of(r, dtype, *dims), scalar(0.05), z(zero), scalar(0.04), z(4)]
            c.add(f"ms_qlinearglobalaveragepool_{last}_{tag}", "QLinearGlobalAveragePool", operands, {"channels_last": last}, tol=STEP)
            attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "channels_last": last}
            c.add(f"ms_qlinearaveragepool_{last}_{tag}", "QLinearAveragePool", operands, attrs, tol=STEP)
        r = c.rng("nhwc" + tag)
        attrs = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0]}
        c.add(f"ms_nhwc_maxpool_{tag}", "NhwcMaxPool", [bytes_of(r, dtype, 1, 5, 6, 3)], attrs, tol=EXACT)
    for name, attrs, per_column, bias, out in [
        ("plain", {}, False, False, True),
        ("bias", {"transB": 1, "alpha": 0.5}, False, True, True),
        ("float", {"transA": 1}, False, True, False),
        ("columns", {}, True, True, True),
    ]:
        r = c.rng("qgemm" + name)
        a = bytes_of(r, np.uint8, *((4, 3) if attrs.get("transA") else (3, 4)))
        b = bytes_of(r, np.int8, *((5, 4) if attrs.get("transB") else (4, 5)))
        sb = Weight(np.linspace(0.01, 0.05, 5).astype(np.float32)) if per_column else scalar(0.03)
        zb = Weight(np.zeros(5, np.int8)) if per_column else scalar(2, np.int8)
        operands = [a, scalar(0.02), scalar(120, np.uint8), Weight(b), sb, zb, Weight(r.integers(-900, 900, 5).astype(np.int32)) if bias else None]
        operands += [scalar(0.11), scalar(100, np.uint8)] if out else []
        while operands[-1] is None:
            operands.pop()
        c.add(f"ms_qgemm_{name}", "QGemm", operands, attrs, tol=STEP if out else FLOAT)
    for dtype, axis in [(np.uint16, None), (np.int16, 1), (np.uint8, 1), (np.int8, None)]:
        r = c.rng(f"linear{dtype.__name__}")
        x = floats(r, 2, 3, 4, scale=40)
        s = np.array([0.2, 0.3, 0.05], np.float32) if axis else np.array(0.3, np.float32)
        z = np.full(s.shape, 7, dtype)
        attrs = {"axis": axis} if axis else {}
        c.add(f"ms_quantizelinear_{dtype.__name__}", "QuantizeLinear", [x, Weight(s), Weight(z)], attrs, tol=EXACT)
        info = np.iinfo(dtype)
        q = r.integers(info.min, info.max, (2, 3, 4)).astype(dtype)
        c.add(f"ms_dequantizelinear_{dtype.__name__}", "DequantizeLinear", [q, Weight(s), Weight(z)], attrs)
    for name, zero, bias in [("plain", False, False), ("bias", True, True)]:
        r = c.rng("dynamic" + name)
        operands = [floats(r, 2, 3, 8), Weight(bytes_of(r, np.int8, 8, 5)), scalar(0.03), scalar(3, np.int8) if zero else None, floats(r, 5) if bias else None]
        while operands[-1] is None:
            operands.pop()
        c.add(f"ms_dynamic_quantize_matmul_{name}", "DynamicQuantizeMatMul", operands, tol={"rtol": 1e-3, "atol": 1e-4})
        a, b = bytes_of(r, np.uint8, 3, 8), bytes_of(r, np.int8, 8, 5)
        operands = [a, Weight(b), scalar(0.02), Weight(np.linspace(0.01, 0.05, 5).astype(np.float32)) if zero else scalar(0.04)]
        operands += [scalar(120, np.uint8), None] if zero else []
        operands += [floats(r, 5)] if bias else []
        while operands[-1] is None:
            operands.pop()
        c.add(f"ms_matmul_integer_to_float_{name}", "MatMulIntegerToFloat", operands)
    for direction, dirs in [("forward", 1), ("bidirectional", 2)]:
        for dtype in [np.uint8, np.int8]:
            r = c.rng(f"lstm{direction}{dtype.__name__}")
            seq, batch, size, hidden = 3, 2, 4, 5
            zero = 120 if dtype == np.uint8 else 0
            operands = [
                floats(r, seq, batch, size),
                Weight(bytes_of(r, dtype, dirs, size, 4 * hidden)),
                Weight(bytes_of(r, dtype, dirs, hidden, 4 * hidden)),
                Weight(floats(r, dirs, 8 * hidden, scale=0.3)),
                None,
                floats(r, dirs, batch, hidden),
                floats(r, dirs, batch, hidden),
                None,
                Weight(np.full(dirs, 0.01, np.float32)),
                Weight(np.full(dirs, zero, dtype)),
                Weight(np.full(dirs, 0.012, np.float32)),
                Weight(np.full(dirs, zero, dtype)),
            ]
            attrs = {"hidden_size": hidden, "direction": direction}
            c.add(f"ms_dynamic_quantize_lstm_{direction}_{dtype.__name__}", "DynamicQuantizeLSTM", operands, attrs, 3, tol={"rtol": 1e-3, "atol": 1e-3})


def recurrent(c):
    """DynamicQuantizeLSTM of sequences that differ in length, and with weights of the cell's state."""
    lengths = np.array([4, 2, 3], np.int32)
    for name, direction, sizes, peepholes in [
        ("lengths", "forward", lengths, False),
        ("lengths_reverse", "reverse", lengths, False),
        ("lengths_both", "bidirectional", lengths, False),
        ("peepholes", "forward", None, True),
        ("peepholes_both", "bidirectional", None, True),
        ("all", "bidirectional", lengths, True),
    ]:
        r = c.rng(name)
        dirs = 2 if direction == "bidirectional" else 1
        seq, batch, size, hidden = 4, 3, 4, 5
        operands = [
            floats(r, seq, batch, size),
            Weight(bytes_of(r, np.int8, dirs, size, 4 * hidden)),
            Weight(bytes_of(r, np.int8, dirs, hidden, 4 * hidden)),
            Weight(floats(r, dirs, 8 * hidden, scale=0.3)),
            sizes,
            floats(r, dirs, batch, hidden),
            floats(r, dirs, batch, hidden),
            Weight(floats(r, dirs, 3 * hidden, scale=0.5)) if peepholes else None,
            Weight(np.full(dirs, 0.01, np.float32)),
            Weight(np.zeros(dirs, np.int8)),
            Weight(np.full(dirs, 0.012, np.float32)),
            Weight(np.zeros(dirs, np.int8)),
        ]
        attrs = {"hidden_size": hidden, "direction": direction}
        c.add(f"ms_dynamic_quantize_lstm_{name}", "DynamicQuantizeLSTM", operands, attrs, 3, tol={"rtol": 1e-3, "atol": 1e-3})


def namesakes(c):
    """Operators that ONNX has, too."""
    r = c.rng("triangles")
    for name, attrs, k in [("upper", {}, None), ("lower", {"upper": 0}, 1), ("below", {"upper": 1}, -1)]:
        operands = [floats(r, 2, 4, 5)] + ([Weight(np.array(k, np.int64))] if k is not None else [])
        c.add(f"ms_trilu_{name}", "Trilu", operands, attrs, tol=EXACT)
    c.add("ms_transpose_matmul", "TransposeMatMul", [floats(r, 2, 4, 3), floats(r, 2, 5, 4)], {"transA": 1, "transB": 1, "alpha": 0.5})
    for mode, padding, corners in [("bilinear", "zeros", 0), ("nearest", "border", 1), ("bicubic", "reflection", 0)]:
        grid = r.uniform(-1.2, 1.2, (1, 3, 4, 2)).astype(np.float32)
        attrs = {"mode": mode, "padding_mode": padding, "align_corners": corners}
        c.add(f"ms_grid_sample_{mode}", "GridSample", [floats(r, 1, 2, 5, 6), grid], attrs)


# ---- old forms that ONNX's own suite has no, or few, tests of ----


def scans(c):
    def body():
        v = lambda n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2])
        nodes = [helper.make_node("Add", ["s", "x"], ["s_out"]), helper.make_node("Mul", ["s_out", "x"], ["y"])]
        return helper.make_graph(nodes, "body", [v("s"), v("x")], [v("s_out"), v("y")])

    for name, lengths, directions in [
        ("plain", None, [0]),
        ("reverse", None, [1]),
        ("lengths", np.array([2, 4, 3], np.int64), [0]),
        ("lengths_reverse", np.array([2, 4, 3], np.int64), [1]),
    ]:
        r = c.rng(name)
        attrs = {"body": body(), "num_scan_inputs": 1, "directions": directions}
        c.add(f"scan8_{name}", "Scan", [lengths, floats(r, 3, 2), floats(r, 3, 4, 2)], attrs, 2, domain="", opset=8)


def resizes(c):
    """The coordinates that only operator sets 11 and 12 have."""
    for k, (scales, mode) in enumerate([((1, 1, 1.5, 2.5), "floor"), ((1, 1, 0.6, 0.7), "floor"), ((1, 1, 3, 2), "round_prefer_ceil"), ((1, 1, 0.5, 1.7), "ceil")]):
        x = np.arange(35, dtype=np.float32).reshape(1, 1, 5, 7)
        attrs = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "mode": "nearest", "nearest_mode": mode}
        operands = [x, Weight(np.zeros(0, np.float32)), Weight(np.array(scales, np.float32))]
        c.add(f"resize11_half_pixel_for_nn_{k}", "Resize", operands, attrs, domain="", opset=11, tol=EXACT)


def uniques(c):
    """Strings that differ."""
    words = np.array(["b", "a", "", "ab", "a", "b", "é", "", "b"], dtype=object)
    for name, x, attrs in [
        ("sorted", words, {}),
        ("first", words, {"sorted": 0}),
        ("axis", np.array([["b", "a"], ["a", "b"], ["b", "a"]], dtype=object), {"axis": 0}),
        ("last_axis", np.array([["b", "a", "b"], ["a", "b", "a"]], dtype=object), {"axis": -1}),
    ]:
        c.add(f"unique_strings_{name}", "Unique", [x], attrs, 4, domain="", opset=11, tol=EXACT)


# ---- QONNX ----


def qonnx(c):
    for signed in [0, 1]:
        for narrow in [0, 1]:
            for mode in ["ROUND", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN"]:
                name = f"{signed}{narrow}{mode}"
                x = np.concatenate([floats(c.rng(name), 20, scale=2), np.arange(-8, 8) * 0.25]).astype(np.float32)
                operands = [x, scalar(0.5), scalar(0.0 if signed else 1.0), scalar(4.0)]
                attrs = {"signed": signed, "narrow": narrow, "rounding_mode": mode}
                c.add(f"qonnx_quant_{signed}{narrow}_{mode.lower()}", "Quant", operands, attrs, domain=QONNX)
    r = c.rng("channels")
    x, s = floats(r, 2, 3, 4), Weight(np.array([0.1, 0.2, 0.4], np.float32).reshape(1, 3, 1))
    attrs = {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}
    c.add("qonnx_quant_channels", "Quant", [x, s, scalar(0.0), scalar(8.0)], attrs, domain=QONNX)
    c.add("qonnx_quant_one_bit", "Quant", [x, scalar(0.5), scalar(0.0), scalar(1.0)], attrs | {"narrow": 0}, domain=QONNX)
    c.add("qonnx_bipolar", "BipolarQuant", [floats(r, 3, 4), scalar(0.5)], {}, domain=QONNX)
    c.add("qonnx_bipolar_channels", "BipolarQuant", [x, s], {}, domain=QONNX)
    for mode in ["FLOOR", "ROUND", "CEIL"]:
        r = c.rng(mode)
        x = (r.integers(-128, 128, (3, 5)) * 0.25).astype(np.float32)
        operands = [x, scalar(0.25), scalar(0.0), scalar(8.0), scalar(4.0)]
        c.add(f"qonnx_trunc_bits_{mode.lower()}", "Trunc", operands, {"rounding_mode": mode}, domain="onnx.brevitas")
        operands[4:] = [scalar(1.0), scalar(4.0)]
        c.add(f"qonnx_trunc_{mode.lower()}", "Trunc", operands, {"rounding_mode": mode, "signed": 1, "narrow": 0}, domain=QONNX)


def run_ort(model, inputs):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def run_qonnx(model, inputs):
    from qonnx.custom_op.general.bipolar_quant import BipolarQuant
    from qonnx.custom_op.general.quant import Quant
    from qonnx.custom_op.general.trunc import Trunc_v1, Trunc_v2

    node = model.graph.node[0]
    trunc = Trunc_v1 if len(node.input) == 5 else Trunc_v2
    context = dict(inputs) | {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    {"Quant": Quant, "BipolarQuant": BipolarQuant, "Trunc": trunc}[node.op_type](node).execute_node(context, model.graph)
    return [np.asarray(context[o], np.float32) for o in node.output]


PARTS = {
    "ort": (run_ort, [activations, products, norms, attention, multi_head, group_query, rotary, narrow_products, quantised, recurrent, namesakes, scans, resizes, uniques]),
    "qonnx": (run_qonnx, [qonnx]),
}


def main():
    run, groups = PARTS[sys.argv[2] if len(sys.argv) > 2 else "ort"]
    cases = Cases(sys.argv[1], run)
    for group in groups:
        group(cases)
    print(f"{cases.count} tests in {sys.argv[1]}")


main()
