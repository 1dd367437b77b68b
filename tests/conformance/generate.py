#!/usr/bin/env python3
"""Writes the node tests that the `onnx` package generates at run time as folders in ONNX's test layout.

Usage: generate.py OUT_DIR      (needs: pip install onnx==1.23.2 pillow ml_dtypes)
"""
import json
import pathlib
import sys

from onnx import TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests


def to_proto(value, info):
    """The message that the type of an input or output asks for."""
    if isinstance(value, TensorProto):
        return value
    convert = {
        "sequence_type": numpy_helper.from_list,
        "optional_type": numpy_helper.from_optional,
        "map_type": numpy_helper.from_dict,
    }.get(info.type.WhichOneof("value"), numpy_helper.from_array)
    return convert(value, info.name)


def write(case, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(case.model.SerializeToString())
    (folder / "tol.json").write_text(json.dumps({"rtol": case.rtol, "atol": case.atol}))
    graph = case.model.graph
    for number, (inputs, outputs) in enumerate(case.data_sets or []):
        data = folder / f"test_data_set_{number}"
        data.mkdir(exist_ok=True)
        for role, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
            for j, (value, info) in enumerate(zip(values, infos)):
                (data / f"{role}_{j}.pb").write_bytes(to_proto(value, info).SerializeToString())


def main():
    out = pathlib.Path(sys.argv[1])
    cases = load_model_tests(kind="node")
    for case in cases:
        write(case, out / case.name)
    print(f"{len(cases)} tests in {out}")


if __name__ == "__main__":
    main()
