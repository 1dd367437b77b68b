#!/usr/bin/env bash
# Trains the student that `infc distill` makes of glyphs_cnn on the CPU, in a virtual environment of its own: run.sh [SEEDS] (5).
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
"$out/venv/bin/python" examples/distill/train.py "$INFC" "$out/glyphs" "${1:-5}"
