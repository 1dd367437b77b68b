"""Converted models against ONNX's own checker and ONNX Runtime.

usage: check.py INFC FOLDER...

Each folder holds a model.onnx and perhaps test_data_set_*/input_*.pb, or such folders. `infc convert` must give a model that
onnx.checker accepts (with shape inference) and whose outputs in ONNX Runtime are those of the original, bit for bit;
`infc convert --simplify` one whose outputs are close, and that has no more nodes. Where ONNX Runtime cannot load the original
(operators of other people's domains), both are compiled and run by infc instead. Exits with 1 if anything differs.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

RTOL, ATOL = 1e-3, 1e-4


def session(path):
    """Runs nodes as they stand: what ONNX Runtime fuses may depend on names and order."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read(path, kind):
    """A stored tensor (of an input of type `kind`); sequences and the like are read as such."""
    data = path.read_bytes()
    if kind.startswith("seq("):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def feeds(folder, inputs):
    """The stored inputs of each data set; else one set of seeded random numbers, with 1 for open dims."""
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        files = [(i, data / f"input_{k}.pb") for k, i in enumerate(inputs)]
        sets.append({i.name: read(file, i.type) for i, file in files if file.exists()})
    if sets:
        return sets
    numbers = np.random.default_rng(0)

    def made(i):
        dims = [d if isinstance(d, int) else 1 for d in i.shape]
        if "string" in i.type:
            return np.full(dims, "some text", dtype=object)
        dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(bool)": np.bool_}.get(i.type)
        if dtype is None:
            return np.zeros(dims, dtype=np.dtype(i.type[len("tensor(") : -1]))
        return numbers.random(dims).astype(dtype)

    return [{i.name: made(i) for i in inputs}]


def compare(name, got, want, exact):
    """What differs between two outputs; None if nothing does."""
    if isinstance(want, (list, dict)):
        return None if repr(got) == repr(want) else f"{name} differs"
    if got.dtype != want.dtype or got.shape != want.shape:
        return f"{name} is {got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if got.dtype == object or not np.issubdtype(got.dtype, np.floating):
        return None if np.array_equal(got, want) else f"{name} differs"
    if exact:
        return None if got.tobytes() == want.tobytes() else f"{name} differs by up to {np.nanmax(np.abs(got - want)):.2e}"
    if np.allclose(got, want, RTOL, ATOL, equal_nan=True):
        return None
    return f"{name} differs by up to {np.nanmax(np.abs(got - want)):.2e}"


def by_infc(infc, source, out, exact):
    """What differs between the outputs of both models, each compiled by infc, for the same random inputs."""
    results = []
    for name, model in (("before", source), ("after", out)):
        made = subprocess.run([infc, "run", model, "--output-dir", out.parent / name], capture_output=True, text=True)
        if made.returncode != 0:
            return [f"infc run {model} exits with {made.returncode}: {made.stderr.strip()}"]
        results.append({f.name: np.load(f) for f in (out.parent / name).iterdir()})
    before, after = results
    if set(before) != set(after):
        return [f"the outputs are {sorted(after)} instead of {sorted(before)}"]
    return [d for d in (compare(name, after[name], before[name], exact) for name in before) if d]


def faults(infc, folder, out, simplify):
    """What is wrong with one conversion of the model in `folder`."""
    source = folder / "model.onnx"
    command = [infc, "convert", str(source), str(out)] + (["--simplify"] if simplify else [])
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:
        return [f"infc convert exits with {made.returncode}: {made.stderr.strip()}"]
    found = []
    try:
        onnx.checker.check_model(str(out), full_check=True)
    except Exception as e:  # the checker and shape inference have an exception each
        found.append(f"onnx.checker: {e}")
    try:
        before = session(source)
    except Exception:
        return found + by_infc(infc, source, out, not simplify)
    try:
        after = session(out)
    except Exception as e:
        return found + [f"ONNX Runtime: {e}"]
    names = [o.name for o in before.get_outputs()]
    if [o.name for o in after.get_outputs()] != names:
        return found + [f"the outputs are {[o.name for o in after.get_outputs()]} instead of {names}"]
    for feed in feeds(folder, before.get_inputs()):
        known = {i.name for i in after.get_inputs()}
        if missing := set(feed) - known:
            return found + [f"the inputs {sorted(missing)} are gone"]
        pairs = zip(names, after.run(None, feed), before.run(None, feed))
        found += [d for d in (compare(name, got, want, not simplify) for name, got, want in pairs) if d]
    nodes = [len(onnx.load(p, load_external_data=False).graph.node) for p in (source, out)]
    if simplify and nodes[1] > nodes[0]:
        found.append(f"has {nodes[1]} nodes, the original {nodes[0]}")
    return found


def main(infc, roots):
    folders = sorted(m.parent for root in roots for m in Path(root).rglob("model.onnx"))
    failed = 0
    for folder in folders:
        for simplify in (False, True):
            with tempfile.TemporaryDirectory() as work:
                found = faults(infc, folder, Path(work) / "model.onnx", simplify)
            failed += bool(found)
            print("FAIL" if found else "ok  ", folder.name, "simplified" if simplify else "", *found, sep="  ", flush=True)
    print(f"{2 * len(folders) - failed} passed, {failed} failed")
    return 1 if failed or not folders else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
