"""glyphs_cnn pruned without labels: prune.py INFC OUT [SAMPLES...] [--draws N] [--first SEED] [--same] [--kinds].

Half of the multiply-accumulates by the defaults of `infc prune --sparsity 0.5`, for SAMPLES (4096) unlabelled images that are drawn anew for each
seed from the fonts of the training, judged on the whole evaluation set, whose fonts neither saw. `--same`: for samples of the evaluation
set instead, judged on the others. `--kinds`: weights set to 0, too. Prints a table in Markdown, accuracies by ONNX Runtime: mean, least and
most over the draws; fails if more than 2 points are lost in the mean by half of the arithmetic.
"""
import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from examples import EXAMPLES, accuracy, evaluation

sys.path.insert(0, str(EXAMPLES))
import glyphs  # noqa: E402

SAMPLES, DRAWS, LIMIT = 4096, 5, 2.0
SEED = 1000  # the training drew with seed 0
HALF = ("channels, half of the arithmetic", ["--sparsity", "0.5"])
KINDS = [("two of four weights 0", ["--kind", "2:4"]), ("half of the weights 0", ["--kind", "unstructured", "--sparsity", "0.5"])]


def drawn(samples, seed):
    """Images as they were trained on, but new ones; their labels are thrown away."""
    random = np.random.default_rng(SEED + seed)
    images, _ = glyphs.render(glyphs.TRAINING_FONTS, -(-samples // len(glyphs.CLASSES)), random)
    return glyphs.degrade(images[:samples], random)[:, None].astype(np.float32) / 255


def span(values):
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("infc")
    parser.add_argument("out", type=Path)
    parser.add_argument("samples", type=int, nargs="*", default=[SAMPLES])
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--same", action="store_true")
    parser.add_argument("--kinds", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    model = EXAMPLES / "glyphs_cnn" / "model.onnx"
    inputs, labels = evaluation("glyphs_cnn")
    missed = []
    print("| samples | what | original | pruned | points lost | time each |\n|---|---|---|---|---|---|")
    for samples in args.samples:
        for what, options in [HALF] + KINDS * args.kinds:
            figures = []
            for seed in range(args.first, args.first + args.draws):
                order = np.random.default_rng(seed).permutation(len(labels))
                images, judged = (inputs[order[:samples]], order[samples:]) if args.same else (drawn(samples, seed), order)
                data, pruned = args.out / f"{samples}_{seed}.npz", args.out / f"{samples}_{seed}.onnx"
                np.savez(data, inputs=images)
                began = time.time()
                subprocess.run([args.infc, "prune", model, *options, "--data", data, "-o", pruned], check=True, stdout=subprocess.DEVNULL)
                took = time.time() - began
                before, after = (accuracy(m, inputs[judged], labels[judged]) for m in (model, pruned))
                figures.append((before, after, before - after, took))
            before, after, lost, took = zip(*figures)
            print(f"| {samples} | {what} | {span(before)} % | {span(after)} % | {span(lost)} | {statistics.median(took):.0f} s |", flush=True)
            if options == HALF[1] and statistics.mean(lost) > LIMIT:
                missed.append(f"{samples} samples: {statistics.mean(lost):.2f} points")
    sys.exit("lost too much: " + "; ".join(missed) if missed else 0)


if __name__ == "__main__":
    main()
