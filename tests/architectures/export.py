"""Exports the architectures as PyTorch does it today, each with inputs and PyTorch's outputs.

usage: export.py OUT [PATTERN]     (Needs: torch torchvision timm transformers scipy onnx onnxscript)

OUT/NAME has model.onnx, how.txt and test_data_set_0 in ONNX's layout. By torch.export with dims left open, by it with known dims, by scripting: the first one that works. What no way exports is listed at
the end, as a failure of the exporter. What is there already stays.
"""

import contextlib
import io
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from architectures import ARCHITECTURES, Plain
from onnx import numpy_helper

SECONDS = 300


def store(folder, kind, tensors):
    folder.mkdir(exist_ok=True)
    for i, t in enumerate(tensors):
        array = np.ascontiguousarray(t.detach().numpy())
        (folder / f"{kind}_{i}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())


def by_export(model, inputs, names, path, open_dims):
    shapes = None
    if open_dims:
        shapes = tuple({axis: torch.export.Dim.AUTO for axis in dims} if dims else None for dims in open_dims)
        shapes = (shapes,) if isinstance(model, Plain) else shapes
    torch.onnx.export(model, inputs, path, dynamo=True, dynamic_shapes=shapes, input_names=names, external_data=False, verbose=False)


def by_script(model, inputs, names, path, open_dims):
    axes = {n: dims for n, dims in zip(names, open_dims) if dims} if open_dims else None
    torch.onnx.export(model, inputs, path, dynamo=False, opset_version=17, dynamic_axes=axes, input_names=names)


def make(name, folder):
    """How the architecture was exported."""
    torch.manual_seed(0)
    model, inputs, names, open_dims = ARCHITECTURES[name]()
    with torch.no_grad():
        want = model(*inputs)
    want = [t for t in torch.utils._pytree.tree_flatten(want)[0] if torch.is_tensor(t)]
    path = str(folder / "model.onnx")
    if open_dims == "script":
        ways = {"scripting": lambda: by_script(model, inputs, names, path, None)}
    else:
        ways = {"torch.export": lambda: by_export(model, inputs, names, path, None), "scripting": lambda: by_script(model, inputs, names, path, open_dims)}
        if open_dims:
            ways = {"torch.export, open dims": lambda: by_export(model, inputs, names, path, open_dims), **ways}
    failures = []
    for how, export in ways.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                export()
        except Exception as e:  # whatever an exporter raises
            failures.append(f"{how}: {type(e).__name__}")
            continue
        given = [t for i in inputs for t in (i if isinstance(i, list) else [i])]
        store(folder / "test_data_set_0", "input", given)
        store(folder / "test_data_set_0", "output", want)
        return how
    raise RuntimeError("; ".join(failures))


def main(out, pattern="."):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)

    def late(*_):
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    names = [n for n in ARCHITECTURES if re.search(pattern, n)]
    failed = []
    for k, name in enumerate(names):
        folder = Path(out) / name
        if (folder / "how.txt").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        signal.alarm(SECONDS)
        try:
            how = make(name, folder)
            (folder / "how.txt").write_text(how + "\n")
        except Exception as e:  # the list goes on
            shutil.rmtree(folder)
            failed.append(f"{name}: {type(e).__name__} {str(e).splitlines()[0][:160] if str(e) else ''}")
            how = "not exported"
        finally:
            signal.alarm(0)
        print(f"{k + 1:4}/{len(names)}  {name}  {how}", flush=True)
    for line in failed:
        print("not exported:", line)


if __name__ == "__main__":
    main(*sys.argv[1:])
