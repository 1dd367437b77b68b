#!/usr/bin/env python3
"""Writes the test suites of the installed `onnx` package as folders in ONNX's test layout.

Usage: suites.py OUT      (needs the onnx package whose suites are wanted, pillow, ml_dtypes)

OUT gets a folder a suite: `node`, `simple`, `pytorch-operator`, `pytorch-converted` and `light` (the nine networks whose weights are
made up; their input is the package's own dummy data, their expected output the package's). The package's own loader says which tests
there are and how much outputs may differ; nothing is left out and nothing is edited.
"""
import json
import shutil
import sys
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from generate import files

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted")
LIGHT = "onnx/backend/test/data/light/"


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tolerances(case):
    return json.dumps({"rtol": case.rtol, "atol": case.atol}).encode()


def stored(case, out):
    """A test that lies in the package as files."""
    shutil.copytree(case.model_dir, out, dirs_exist_ok=True)
    write(out / "tol.json", tolerances(case))


def light(case, out):
    """A network of the package with the input that the package's runner makes for it."""
    model = Path(onnx.__file__).parent.parent / case.url
    graph = onnx.load(model).graph
    weights = {i.name for i in graph.initializer}
    inputs = [i for i in graph.input if i.name not in weights]
    write(out / "model.onnx", model.read_bytes())
    write(out / "tol.json", tolerances(case))
    for k, value in enumerate(inputs):
        data = Runner.generate_dummy_data(value, seed=0, name=case.model_name, random=False)
        write(out / f"test_data_set_0/input_{k}.pb", numpy_helper.from_array(data).SerializeToString())
    for k in range(len(graph.output)):
        write(out / f"test_data_set_0/output_{k}.pb", model.with_name(f"{model.stem}_output_{k}.pb").read_bytes())


def main(out):
    counts = {}
    for kind in KINDS:
        cases = load_model_tests(kind=kind)
        for case in cases:
            if case.model_dir is None:
                for path, data in files(case):
                    write(out / kind / path, data)
            else:
                stored(case, out / kind / case.name)
        counts[kind] = len(cases)
    nets = [case for case in load_model_tests(kind="real") if (case.url or "").startswith(LIGHT)]
    for case in nets:
        light(case, out / "light" / case.name)
    counts["light"] = len(nets)
    print(f"onnx {onnx.__version__}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
