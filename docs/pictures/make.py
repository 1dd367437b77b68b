"""Make the pictures of docs/compression.md: plots of the reports that its commands write, each as a file of its own.

make.py INFC FOLDER   runs the commands on the bundled models, with what they write in FOLDER, and writes the SVG files beside this script
"""
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
MODELS = HERE.parent.parent / "examples/models"
MODEL, SAMPLES = MODELS / "glyphs_cnn/model.onnx", MODELS / "glyphs_cnn/eval.npz"

# Commands of the page, with the name of their report.
COMMANDS = {
    "glyphs": ["quantize", MODEL, "--data", SAMPLES, "--samples", "32", "--evaluate", SAMPLES, "-o", "glyphs_int8.onnx"],
    "mixed": ["quantize", MODEL, "--data", SAMPLES, "--samples", "256", "--min-sqnr", "44", "-o", "mixed.onnx"],
    "pruned": ["prune", MODEL, "--sparsity", "0.5", "--kind", "unstructured", "--data", SAMPLES, "--samples", "256", "-o", "pruned.onnx"],
}

# Pictures: report, the heading before it, how many of the plots there.
PICTURES = {
    "layers": ("glyphs", "Signal to noise of each layer", 1),
    "sensitivity": ("mixed", "Sensitivity", 1),
    "choices": ("mixed", "Latency and quality of the choices", 1),
    "weights": ("pruned", "Weights before and after", 3),
}


def plots(page, heading, count):
    """The first plots behind a heading."""
    at = page.index(heading)
    found = re.findall(r"<svg.*?</svg>", page[at:], re.S)[:count]
    assert len(found) == count, f"'{heading}' has {len(found)} plots"
    return found


def side_by_side(pictures):
    """One picture of several, on white, so that it can be seen on dark pages too."""
    parts, x, height = [], 12.0, 0.0
    for picture in pictures:
        _, _, w, h = (float(v) for v in re.search(r'viewBox="([^"]*)"', picture).group(1).split())
        parts.append(picture.replace("<svg ", f'<svg x="{x:.0f}" y="10" height="{h:.0f}" ', 1))
        x, height = x + w + 12, max(height, h)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x:.0f} {height + 20:.0f}" width="{x:.0f}">'
    return f'{head}<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'


def main():
    infc, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for name, command in COMMANDS.items():
        subprocess.run([infc, *map(str, command), "--report", f"{name}.html"], cwd=folder, check=True)
    for name, (report, heading, count) in PICTURES.items():
        page = (folder / f"{report}.html").read_text()
        (HERE / f"{name}.svg").write_text(side_by_side(plots(page, heading, count)))


main()
