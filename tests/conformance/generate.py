#!/usr/bin/env python3
"""Writes the node tests that the `onnx` package generates at run time as an archive of folders in ONNX's test layout.

Usage: generate.py OUT.tar.xz      (needs: pip install onnx==1.23.2 pillow ml_dtypes)

A folder has model.onnx, tol.json, and input_<j>.pb and output_<j>.pb for each data set. The archive holds no times or owners and its
files in order, so that it depends on nothing but the package.
"""
import io
import json
import lzma
import sys
import tarfile

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


def files(case):
    """The files of a test, by path."""
    yield f"{case.name}/model.onnx", case.model.SerializeToString()
    yield f"{case.name}/tol.json", json.dumps({"rtol": case.rtol, "atol": case.atol}).encode()
    graph = case.model.graph
    for number, (inputs, outputs) in enumerate(case.data_sets or []):
        for role, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
            for j, (value, info) in enumerate(zip(values, infos)):
                path = f"{case.name}/test_data_set_{number}/{role}_{j}.pb"
                yield path, to_proto(value, info).SerializeToString()


def main():
    cases = load_model_tests(kind="node")
    everything = sorted(file for case in cases for file in files(case))
    with lzma.open(sys.argv[1], "wb", preset=9 | lzma.PRESET_EXTREME) as out, tarfile.open(fileobj=out, mode="w") as archive:
        for path, data in everything:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    print(f"{len(cases)} tests in {sys.argv[1]}")


if __name__ == "__main__":
    main()
