#!/usr/bin/env python3
"""The node tests of ONNX, converted, in ONNX Runtime: the same outputs as from the originals.

usage: node_tests.py INFC FOLDER     (FOLDER: tests in ONNX's layout; onnx, onnxruntime and ml_dtypes are installed)

`infc convert` of each model must succeed. What ONNX Runtime runs of the originals it must run of the converted models, with the same inputs, and
give the same outputs: bit by bit, where any NaN is a NaN; of random outputs dtype and shape. Tests whose original ONNX Runtime does not run
are counted and listed with what it says. Tests run in child processes, a block at a time: one that ends its process or never ends is a
failure of that test alone. Exits with 1 if anything differs.
"""

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent.parent / "conformance"))
import peers

SECONDS = 300
BLOCK = 100


def values(path, inputs):
    """The feed of a data set: what ONNX Runtime takes as numpy values."""
    files = ((i, path / f"input_{k}.pb") for k, i in enumerate(inputs))
    feed = {i.name: peers.read(f, i) for i, f in files if f.exists()}
    return {n: v for n, v in feed.items() if not peers.is_narrow(v)}


def difference(got, want, free):
    """What differs, or None."""
    if want is None or got is None:
        return None if got is want else "is there or not"
    if isinstance(want, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(want):
            return "is another list"
        return next((d for g, w in zip(got, want) if (d := difference(g, w, free))), None)
    if isinstance(want, dict):
        if not isinstance(got, dict) or list(got) != list(want):
            return "has other keys"
        return next((d for k in want if (d := difference(np.asarray(got[k]), np.asarray(want[k]), free))), None)
    got, want = np.asarray(got), np.asarray(want)
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"is {got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
    if free or want.size == 0:
        return None
    if want.dtype.kind in "OUS":
        return None if got.ravel().tolist() == want.ravel().tolist() else "strings differ"
    equal = got.reshape(-1).view(np.uint8).reshape(got.size, -1) == want.reshape(-1).view(np.uint8).reshape(got.size, -1)
    equal = equal.all(axis=1)
    if want.dtype.kind not in "iub":
        with np.errstate(all="ignore"):
            equal |= (np.isnan(got) & np.isnan(want)).ravel()
    if equal.all():
        return None
    at = int(np.argmin(equal))
    return f"element {at} is {got.ravel()[at]} instead of {want.ravel()[at]} ({int((~equal).sum())} of {want.size} differ)"


def check(infc, folder):
    """(what ONNX Runtime says of the original, or None), (what is wrong with the converted model, or None)."""
    model = onnx.load(folder / "model.onnx")
    weights = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in weights]
    free = peers.is_random(model.graph)
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "model.onnx"
        made = subprocess.run([infc, "convert", folder / "model.onnx", out], capture_output=True, text=True)
        if made.returncode != 0:
            return None, f"infc convert exits with {made.returncode}: {made.stderr.strip()}"
        converted = onnx.load(out)
    for data in sorted(folder.glob("test_data_set_*")):
        feed = values(data, inputs)
        try:
            before = peers.engine("onnxruntime", peers.with_constants("onnxruntime", model, inputs, data), True)(feed)
        except Exception as e:
            return f"{type(e).__name__}: {str(e).strip().splitlines()[0]}", None
        names = [i.name for i in converted.graph.input]
        if names != [i.name for i in model.graph.input if i.name not in weights]:
            return None, f"has the inputs {names}"
        try:
            after = peers.engine("onnxruntime", peers.with_constants("onnxruntime", converted, inputs, data), True)(feed)
        except Exception as e:
            return None, f"ONNX Runtime runs the original, of the converted model it says {type(e).__name__}: {str(e).strip().splitlines()[0]}"
        for info, got, want in zip(model.graph.output, after, before):
            if d := difference(got, want, free):
                return None, f"{info.name} {d}"
        if len(after) != len(before):
            return None, f"has {len(after)} outputs instead of {len(before)}"
    return None, None


def child(infc, folders):
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for folder in folders:
        try:
            refused, fault = check(infc, Path(folder))
        except Exception as e:
            refused, fault = None, f"{type(e).__name__}: {e}"
        print(json.dumps([refused, fault]), file=out, flush=True)


def run(infc, folders):
    """The results of all tests, by folder."""
    results = {}
    while left := [f for f in folders if f not in results]:
        block = left[:BLOCK]
        started = subprocess.Popen([sys.executable, __file__, "--child", infc, *block], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            text, why = started.communicate(timeout=SECONDS)[0], "ends its process"
        except subprocess.TimeoutExpired:
            started.kill()
            text, why = started.communicate()[0], "does not end"
        done = [json.loads(line) for line in text.splitlines()]
        results.update(zip(block, done))
        if len(done) < len(block):
            results[block[len(done)]] = [f"ONNX Runtime {why}", None]
    return results


def reason(message):
    """What ONNX Runtime says, without places in its source, names of files and numbers that differ from test to test."""
    text = re.sub(r"Load model from \S+ failed:", "", re.sub(r"/onnxruntime_src/\S+ \S+\(.*?\) (?=\w)", "", message))
    text = text.split(" : ", 2)[-1] if text.split(": ", 1)[-1].startswith("[ONNXRuntimeError]") else text
    return re.sub(r"'\S*'|\(node:\S+\)|\(\S*\) bound.*|\d+(?=\))", "", text).strip()[:110]


def main(infc, root):
    os.environ["ALLOW_RELEASED_ONNX_OPSET_ONLY"] = "0"  # ONNX Runtime refuses the newest operator set otherwise
    folders = sorted(str(m.parent) for m in Path(root).rglob("model.onnx"))
    results = run(infc, folders)
    reasons = collections.defaultdict(list)
    failed = 0
    for folder in folders:
        refused, fault = results[folder]
        if fault:
            failed += 1
            print(f"FAIL  {Path(folder).name}  {fault[:400]}")
        elif refused:
            reasons[reason(refused)].append(Path(folder).name)
    print("not run by ONNX Runtime:")
    for why, names in sorted(reasons.items(), key=lambda r: (-len(r[1]), r[0])):
        print(f"  {len(names)}: {why}: {' '.join(names)}")
    unrun = sum(map(len, reasons.values()))
    print(f"{len(folders)} converted node tests: {len(folders) - unrun - failed} give the same outputs in ONNX Runtime, {failed} do not, "
          f"{unrun} originals are not run by it")
    return 1 if failed or not folders else 0


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1], sys.argv[2]))
