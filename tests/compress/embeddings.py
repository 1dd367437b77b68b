"""Quantised sentence embeddings against their limits: embeddings.py INFC FOLDER OUT.

FOLDER has `model.onnx` (token ids to features of each token), `calibration.npz` and, of other sentences, `evaluation.npz`. Defaults of
`infc quantize`: static int8, and int4 weights. Mean-pooled and normalised, beside the model in f32. Prints a table in Markdown; fails if
a limit is missed. Times, of the first sentence: see speed.py.
"""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from speed import faster

# Least mean cosine, least cosine of a sentence, share of sentences with the same nearest neighbour, times smaller, times as fast.
LIMITS = {"static": (0.998, 0.995, 0.97, 3.5, 1.6), "int4": (0.99, None, None, 6.0, None)}


def sentence(evaluation, out):
    """Options that give `infc bench` the first sentence, without its padding."""
    arrays = np.load(evaluation)
    length = int(arrays["attention_mask"][0].sum()) if "attention_mask" in arrays else None
    options = []
    for name in arrays.files:
        path = out / f"{name}.npy"
        np.save(path, arrays[name][:1, :length])
        options += ["--input", f"{name}={path}"]
    return options


def main():
    infc, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    missed, timed = 0, sentence(folder / "evaluation.npz", out)
    print("| | cosine, mean | least | same nearest neighbour | file smaller by | f32 | quantised | faster |\n|---|---|---|---|---|---|---|---|")
    for scheme, limits in LIMITS.items():
        model, report = out / f"{scheme}.onnx", out / f"{scheme}.json"
        subprocess.run([infc, "quantize", folder / "model.onnx", "--data", folder / "calibration.npz", "--evaluate",
                        folder / "evaluation.npz", "--scheme", scheme, "-o", model, "--report", report],
                       check=True, stdout=subprocess.DEVNULL)
        compared = subprocess.run([infc, "compare", folder / "model.onnx", model, "--data", folder / "evaluation.npz", "--embeddings",
                                   "--json"], check=True, stdout=subprocess.PIPE)
        e = json.loads(compared.stdout)["embeddings"]
        step = json.loads(report.read_text())["steps"][0]
        smaller = step["before"]["bytes"] / step["after"]["bytes"]
        before, after = faster(infc, folder / "model.onnx", model, out, timed)
        figures = (e["cosine"], e["cosine_min"], e["neighbours"], smaller, before / after)
        print(f"| {scheme} | {figures[0]:.5f} | {figures[1]:.5f} | {100 * figures[2]:.0f} % | {smaller:.2f}x | "
              f"{before:.2f} ms | {after:.2f} ms | {before / after:.2f}x |", flush=True)
        missed += sum(limit is not None and figure < limit for figure, limit in zip(figures, limits))
    sys.exit(f"{missed} limits are missed" if missed else 0)


if __name__ == "__main__":
    main()
