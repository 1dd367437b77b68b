"""Exported architectures compiled and beside PyTorch's outputs, and timed beside ONNX Runtime. Writes a page.

usage: check.py INFC FOLDER PAGE [PATTERN]     (Needs: onnx onnxruntime numpy)

FOLDER is what export.py made. Each model is compiled as it is, with its open dims, and must agree with PyTorch's stored outputs: relative 1e-3, absolute 1e-4 or 1e-5 of the largest element of the outputs. Random weights make some models so sensitive (near ties of a TopK, layers that magnify what is lost) that PyTorch and ONNX Runtime part as well: where ONNX Runtime is beyond the same tolerance, that is said instead. Then both run the stored inputs with one thread, one program after the other on the
same core, medians of runs for half a second. With a PATTERN the rows of the page whose names have it are made anew. Exits with 1 if a model is not compiled or differs where ONNX Runtime does not. TIMED="chrt -f 50 taskset -c 1" or the like lets times be taken undisturbed.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

RTOL, ATOL, SECONDS = 1e-3, 1e-4, 0.5
TIMED = os.environ.get("TIMED", "").split()


def read(path):
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


def tolerance(folder):
    """The absolute one: what is lost beside the largest element is noise, where sums of f32 have thousands of products."""
    outputs = [read(f) for f in (folder / "test_data_set_0").glob("output_*.pb")]
    largest = max((float(np.abs(o[np.isfinite(o)]).max(initial=0)) for o in outputs if o.dtype.kind == "f"), default=0)
    return max(ATOL, 1e-5 * largest)


def by_peer(folder):
    """Child program: do the outputs of ONNX Runtime agree, and the median of its runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    data = folder / "test_data_set_0"
    feed = {i.name: read(data / f"input_{k}.pb") for k, i in enumerate(session.get_inputs())}
    agrees, atol = True, tolerance(folder)
    for k, got in enumerate(session.run(None, feed)):
        want = read(data / f"output_{k}.pb")
        agrees &= got.shape == want.shape and bool(np.allclose(got, want, RTOL, atol, equal_nan=True))
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin < SECONDS or len(times) < 5:
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    print(json.dumps({"agrees": agrees, "ms": 1e3 * statistics.median(times), "inputs": list(feed)}))


def run(command, seconds=600):
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


def check(infc, folder, artifact):
    """A row of the page."""
    row = {"how": (folder / "how.txt").read_text().strip()}
    done = run([infc, "verify", str(folder), "-q", "--rtol", str(RTOL), "--atol", str(tolerance(folder))])
    row["says"] = (done.stdout + done.stderr).strip().splitlines()[0] if done.returncode else ""
    peer = run([*TIMED, sys.executable, __file__, "--peer", str(folder)])
    peer = json.loads(peer.stdout.splitlines()[-1]) if peer.returncode == 0 else None
    without = "ONNX Runtime neither" if peer and not peer["agrees"] else "**no**"
    row["agrees"] = "yes" if done.returncode == 0 else without
    if run([infc, "compile", str(folder / "model.onnx"), "-o", artifact]).returncode == 0:
        names = peer["inputs"] if peer else [i.name for i in onnx.load(folder / "model.onnx", load_external_data=False).graph.input]
        given = [a for k, n in enumerate(names) for a in ("-i", f"{n}={folder / 'test_data_set_0' / f'input_{k}.pb'}")]
        timed = run([*TIMED, infc, "bench", artifact, "--json", "--seconds", str(SECONDS), "--runs", "5", *given])
        row["ms"] = json.loads(timed.stdout)["median_ms"] if timed.returncode == 0 else None
    else:
        row["ms"] = None
    row["peer_ms"] = peer["ms"] if peer else None
    return row


def before(target):
    """The rows of the page."""
    lines = Path(target).read_text().splitlines() if Path(target).exists() else []
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("| ") and "/" in line.split("|")[1]]
    number = lambda v: float(v) if v else None  # noqa: E731
    return {c[0]: {"how": c[1], "agrees": c[2], "ms": number(c[3]), "peer_ms": number(c[4]), "says": ""} for c in cells}


def page(rows):
    done = [r for r in rows.values() if r["ms"] and r["peer_ms"]]
    ratios = sorted(r["ms"] / r["peer_ms"] for r in done)
    count = {v: sum(r["agrees"] == v for r in rows.values()) for v in ("yes", "ONNX Runtime neither", "**no**")}
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.machine())
    out = [
        "# Architectures",
        "",
        "Made by `./x architectures`: architectures of timm, torchvision and transformers with random weights, exported by PyTorch with its own exporters, compiled as they are (dims stay open where the export left them open) and compared with PyTorch's",
        "outputs (relative 1e-3, absolute 1e-4 or 1e-5 of the largest element). Text models are small: two layers of 64. *ONNX Runtime neither*: with random weights PyTorch's own numbers cannot be told within that (near ties of a TopK, layers that magnify what is lost), and ONNX Runtime's differ as well.",
        "",
        f"Times: one thread, medians, one program after the other on the same core ({cpu}), {time.strftime('%Y-%m-%d')}, ONNX Runtime {ort.__version__}.",
        "",
        f"{len(rows)} architectures: {count['yes']} agree with PyTorch, {count['ONNX Runtime neither']} differ as ONNX Runtime does, {count['**no**']} differ alone. "
        f"infc takes {ratios[0]:.2f} to {ratios[-1]:.2f} of ONNX Runtime's time, the median is {statistics.median(ratios):.2f}, and {sum(r <= 1 for r in ratios)} of {len(ratios)} are no slower.",
        "",
        "| architecture | exported by | agrees | infc, ms | ONNX Runtime, ms | ratio |",
        "|---|---|---|---:|---:|---:|",
    ]
    number = lambda v: "" if v is None else f"{v:.3g}" if v < 1000 else f"{v:.0f}"  # noqa: E731
    for name, r in rows.items():
        ratio = f"{r['ms'] / r['peer_ms']:.2f}" if r["ms"] and r["peer_ms"] else ""
        out.append(f"| {name} | {r['how']} | {r['agrees']} | {number(r['ms'])} | {number(r['peer_ms'])} | {ratio} |")
    return "\n".join(out) + "\n"


def main(infc, root, target, pattern="."):
    root, rows = Path(root), {}
    folders = [f.parent for f in sorted(root.glob("*/*/how.txt")) if re.search(pattern, str(f.parent.relative_to(root)))]
    for k, folder in enumerate(folders):
        name = str(folder.relative_to(root))
        row = rows[name] = check(infc, folder, str(root / "artifact.infc"))
        ratio = f"{row['ms'] / row['peer_ms']:.2f}" if row["ms"] and row["peer_ms"] else "-"
        print(f"{k + 1:4}/{len(folders)}  {name:48} {row['agrees'].strip('*'):22} {ratio}  {row['says'] if row['agrees'] == '**no**' else ''}", flush=True)
    every = dict(sorted({**(before(target) if pattern != "." else {}), **rows}.items()))
    if every:
        Path(target).write_text(page(every))
    bad = [n for n, r in rows.items() if r["agrees"] == "**no**" or r["ms"] is None]
    print(f"{len(rows) - len(bad)} of {len(rows)} architectures are right")
    sys.exit(1 if bad or not rows else 0)


if __name__ == "__main__":
    if sys.argv[1] == "--peer":
        by_peer(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
