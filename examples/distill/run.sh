#!/usr/bin/env bash
# Trains the student that `infc distill` made of glyphs_cnn, where labels are few, in a virtual environment of its own: run.sh [SEEDS] [JOBS] (5, one at a time).
# INFC names the compiler; without it one is built. The first run downloads PyTorch.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${CARGO_TARGET_DIR:-target}/distill"
if [ -z "${INFC:-}" ]; then
  cargo build --release -p infc
  INFC="${CARGO_TARGET_DIR:-target}/release/infc"
fi
[ -e "$out/venv/bin/pip" ] || python3 -m venv "$out/venv"
"$out/venv/bin/pip" install -q -r examples/distill/requirements.txt
python="$out/venv/bin/python"
"$python" examples/distill/train.py export "$INFC" "$out/glyphs" "${1:-5}"
"$python" examples/distill/train.py train "$out/glyphs" "${1:-5}" "${2:-1}"
"$python" examples/distill/train.py check "$INFC" "$out/glyphs"
