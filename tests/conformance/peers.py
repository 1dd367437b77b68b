#!/usr/bin/env python3
"""Runs ONNX's reference evaluator or ONNX Runtime on folders in ONNX's test layout, by the rule that `infc verify` has.

Usage: peers.py ENGINE OUT.json FOLDER...      (ENGINE: reference or onnxruntime)

Equal are outputs whose dtype and shape are exact, NaN meets NaN, infinities have the same sign, and |got - want| <= atol + rtol |want| with
the folder's tol.json. Of random outputs only dtype and shape are looked at. Tests run in child processes, a block at a time, so that
one which ends its process or never ends is a failure of that test alone.
"""
import ctypes
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

SECONDS = 60
# The dtypes of numpy itself, by ONNX's numbers; 0 is no tensor.
NUMPY = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


def read(path, info):
    """A stored value of the type that the model declares."""
    data = path.read_bytes()
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    if kind == "map_type":
        return numpy_helper.to_dict(onnx.MapProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def plain(value):
    """A result of ONNX Runtime as numpy; one of a dtype that numpy has not from its bytes."""
    if not value.is_tensor() or value.element_type() in NUMPY:
        return value.numpy()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return numpy_helper.to_array(onnx.TensorProto(data_type=value.element_type(), dims=value.shape(), raw_data=raw))


def engine(name, model, as_it_stands=False):
    """A function from a feed to outputs; ONNX Runtime runs nodes `as_it_stands`, or fuses them."""
    if name == "reference":
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda feed: evaluator.run(None, feed)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if as_it_stands:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]

    if all(o.type.tensor_type.elem_type in NUMPY for o in model.graph.output):
        return lambda feed: session.run(None, feed)

    def run(feed):
        feed = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feed.items()}
        return [plain(v) for v in session.run_with_ort_values(names, feed)]

    return run


def is_narrow(value):
    """Is it of a dtype that numpy has not?"""
    return isinstance(value, np.ndarray) and value.dtype.kind not in "fiubOUSc"


def with_constants(name, model, inputs, data):
    """The model for ONNX Runtime, which takes no numpy values of narrow dtypes: those inputs become constants of it."""
    if name != "onnxruntime":
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for k, info in enumerate(inputs):
        file = data / f"input_{k}.pb"
        if info.type.HasField("tensor_type") and info.type.tensor_type.elem_type not in NUMPY and file.exists():
            tensor = onnx.TensorProto.FromString(file.read_bytes())
            tensor.name = info.name
            made.graph.initializer.append(tensor)
            made.graph.input.remove(next(i for i in made.graph.input if i.name == info.name))
    return made


def is_random(graph):
    return any(
        n.op_type in RANDOM or n.op_type == "Dropout" and len(n.input) > 2 or any(is_random(a.g) for a in n.attribute if a.HasField("g"))
        for n in graph.node
    )


def difference(got, want, rtol, atol, free):
    """What is wrong, or None."""
    if want is None or got is None:
        return None if got is want else "is not there" if got is None else "is there"
    if isinstance(want, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(want):
            return "is another list"
        return next((d for g, w in zip(got, want) if (d := difference(g, w, rtol, atol, free))), None)
    if isinstance(want, dict):
        if not isinstance(got, dict) or set(got) != set(want):
            return "has other keys"
        return next((d for k in want if (d := difference(np.asarray(got[k]), np.asarray(want[k]), rtol, atol, free))), None)
    got, want = np.asarray(got), np.asarray(want)
    if want.dtype.kind in "OUS":
        same = got.shape == want.shape and [str(v) for v in got.ravel()] == [str(v) for v in want.ravel()]
        return None if same else "strings differ"
    if got.dtype != want.dtype and got.dtype.itemsize == want.dtype.itemsize and got.dtype.kind == "u" and want.dtype.kind == "V":
        got = got.view(want.dtype)
    if got.dtype != want.dtype:
        return f"dtype is {got.dtype} instead of {want.dtype}"
    if got.shape != want.shape:
        return f"shape is {list(got.shape)} instead of {list(want.shape)}"
    if free or got.size == 0:
        return None
    wide = np.complex128 if want.dtype.kind == "c" else np.float64 if want.dtype.kind not in "iub" else np.float64
    g, w = got.astype(wide), want.astype(wide)
    if want.dtype.kind in "iu" and (np.asarray(got) == np.asarray(want)).all():
        return None
    with np.errstate(all="ignore"):
        good = (g == w) | (np.isnan(g) & np.isnan(w)) | (np.isfinite(g) & np.isfinite(w) & (np.abs(g - w) <= atol + rtol * np.abs(w)))
    if good.all():
        return None
    at = tuple(int(i) for i in np.argwhere(~good)[0]) if good.ndim else ()
    return f"{list(at)} is {got[at]} instead of {want[at]} ({int((~good).sum())} of {good.size} elements differ too much)"


def check(name, folder):
    path = folder / "model.onnx"
    model = onnx.load(path)
    tolerances = json.loads((folder / "tol.json").read_text()) if (folder / "tol.json").exists() else {"rtol": 1e-3, "atol": 1e-4}
    free = is_random(model.graph)
    weights = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    run = None
    for data in sorted(folder.glob("test_data_set_*")):
        if run is None or name == "onnxruntime" and any(i.type.tensor_type.elem_type not in NUMPY for i in inputs):
            run = engine(name, with_constants(name, model, inputs, data))
        feed = {i.name: read(f, i) for k, i in enumerate(inputs) if (f := data / f"input_{k}.pb").exists()}
        if name == "onnxruntime":
            feed = {n: v for n, v in feed.items() if not is_narrow(v)}
        outputs = run(feed)
        for k, info in enumerate(model.graph.output):
            file = data / f"output_{k}.pb"
            if file.exists() and (d := difference(outputs[k], read(file, info), tolerances["rtol"], tolerances["atol"], free)):
                return f"{info.name}{d if d.startswith('[') else ' ' + d}"
    return None


def child(name, folders):
    warnings.simplefilter("ignore")
    sink = os.open(os.devnull, os.O_WRONLY)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(sink, 1)
    for folder in folders:
        refused = False
        try:
            fault = check(name, Path(folder))
        except BaseException as e:  # whatever an engine throws is its answer
            refused, fault = True, f"{type(e).__name__}: {str(e).strip().splitlines()[0][:200] if str(e).strip() else ''}"
        print(json.dumps({"folder": folder, "fault": fault, "refused": refused}), file=out, flush=True)


def main(name, out, roots):
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # ONNX Runtime refuses the newest operator set otherwise
    folders = sorted(str(m.parent) for root in roots for m in Path(root).rglob("model.onnx"))
    results, left = {}, folders
    while left:
        block = left[:200]
        started = subprocess.Popen([sys.executable, __file__, "--child", name, *block], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            text, _ = started.communicate(timeout=SECONDS * 10)
            why = "ends its process"
        except subprocess.TimeoutExpired:
            started.kill()
            text, _ = started.communicate()
            why = "does not end"
        done = [json.loads(line) for line in text.splitlines()]
        results.update((r["folder"], (r["fault"], r["refused"])) for r in done)
        if len(done) < len(block):
            results[block[len(done)]] = (why, True)
            done.append(None)
        left = left[len(done) :]
    passed = sum(fault is None for fault, _ in results.values())
    report = [{"folder": f, "suite": Path(f).parent.name, "name": Path(f).name, "fault": results[f][0], "refused": results[f][1]} for f in folders]
    Path(out).write_text(json.dumps(report, indent=0))
    print(f"{name}: {passed} of {len(results)} pass")


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
