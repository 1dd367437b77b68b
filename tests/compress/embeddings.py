"""Quantised sentence embeddings against their limits: embeddings.py INFC FOLDER OUT.

FOLDER has `model.onnx` (token ids to features of each token), `calibration.npz` and, of other sentences, `evaluation.npz`. Defaults of
`infc quantize`: static int8, and int4 weights. Mean-pooled and normalised, beside the model in f32. Prints a table in Markdown; fails if
a limit is missed. Times are the least of some runs on the first sentence, one thread, by one process right after the other.
"""
import json
import subprocess
import sys
from pathlib import Path

# Least mean cosine, least cosine of a sentence, share of sentences with the same nearest neighbour, times smaller, times as fast.
LIMITS = {"static": (0.998, 0.995, 0.97, 3.5, 1.6), "int4": (0.99, None, None, 6.0, None)}


def main():
    infc, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    missed = 0
    print("| | cosine, mean | least | same nearest neighbour | file smaller by | as fast as f32 |\n|---|---|---|---|---|---|")
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
        faster = step["before"]["latency_ms"] / step["after"]["latency_ms"]
        figures = (e["cosine"], e["cosine_min"], e["neighbours"], smaller, faster)
        print(f"| {scheme} | {figures[0]:.5f} | {figures[1]:.5f} | {100 * figures[2]:.0f} % | {smaller:.2f}x | {faster:.2f}x |", flush=True)
        missed += sum(limit is not None and figure < limit for figure, limit in zip(figures, limits))
    sys.exit(f"{missed} limits are missed" if missed else 0)


if __name__ == "__main__":
    main()
