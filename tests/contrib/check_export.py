"""Converted tests of contrib operators in ONNX Runtime.

usage: check_export.py INFC FOLDER     (FOLDER: the unpacked contrib.tar.xz)

`infc convert` of each model must pass onnx.checker, and give the expected outputs in ONNX Runtime to the test's tolerance. Models that ONNX
Runtime does not know (QONNX) must come back with the same operator. Every operator of others that `infc ops` lists must have a test. Exits with
1 if anything differs.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper


def tensor(path):
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def check(infc, folder, out):
    """What is wrong with a converted model, or nothing."""
    subprocess.run([infc, "convert", folder / "model.onnx", out], check=True, capture_output=True)
    model = onnx.load(out)
    if any(s.domain.startswith("qonnx") for s in model.opset_import):
        before = onnx.load(folder / "model.onnx").graph.node
        return None if [n.op_type for n in before] == [n.op_type for n in model.graph.node] else "another operator"
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(out), options, providers=["CPUExecutionProvider"])
    data = folder / "test_data_set_0"
    got = session.run(None, {i.name: tensor(data / f"input_{k}.pb") for k, i in enumerate(session.get_inputs())})
    tol = json.loads((folder / "tol.json").read_text())
    for k, (g, w) in enumerate(zip(got, [tensor(data / f"output_{k}.pb") for k in range(len(got))])):
        if w.dtype == object:
            if g.shape != w.shape or g.tolist() != w.tolist():
                return f"output {k} differs"
            continue
        # Operators that are composed of others round once more.
        near = np.allclose(g.astype(float), w.astype(float), rtol=tol["rtol"] + 1e-4, atol=tol["atol"] + 1e-5)
        if g.shape != w.shape or not near:
            return f"output {k} differs"
    return None


def untested(infc, tests):
    """Operators that ONNX does not define, listed and without a test."""
    listed = json.loads(subprocess.run([infc, "ops", "--json"], check=True, capture_output=True, text=True).stdout)
    own = lambda d: d in ("", "ai.onnx") or d.startswith("ai.onnx.")
    alias = {"onnx.brevitas": "qonnx.custom_op.general"}
    tested = {(alias.get(n.domain, n.domain), n.op_type) for t in tests for n in onnx.load(t / "model.onnx").graph.node}
    return sorted({(o["domain"], o["name"]) for o in listed if not own(o["domain"])} - tested)


def main():
    infc, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    tests, bad = sorted(p.parent for p in folder.glob("*/model.onnx")), 0
    for domain, name in untested(infc, tests):
        bad += 1
        print(f"FAIL  {domain}:{name}  is listed by `infc ops` and has no test")
    with tempfile.TemporaryDirectory() as work:
        for test in tests:
            try:
                problem = check(infc, test, pathlib.Path(work) / "model.onnx")
            except Exception as e:  # whatever a tool says is what is wrong
                problem = str(e)
            if problem:
                bad += 1
                print(f"FAIL  {test.name}  {problem[:300]}")
    print(f"{len(tests) - bad} converted contrib models are equal, {bad} are not")
    sys.exit(1 if bad or not tests else 0)


main()
