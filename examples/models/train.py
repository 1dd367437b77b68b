"""Train and export the example models: train.py [NAME...]. A few minutes each on one core; seeds are fixed."""
import sys

import torch

import digits_mlp
import evaluate
import glyphs_cnn
import language_gru
import snippets_transformer

MODELS = {m.NAME: m for m in (glyphs_cnn, digits_mlp, language_gru, snippets_transformer)}

if __name__ == "__main__":
    torch.set_num_threads(1)  # also fixes the order of every sum
    for name in sys.argv[1:] or MODELS:
        print(name)
        torch.manual_seed(0)
        MODELS[name].train()
        print(f"  accuracy {evaluate.accuracy(name):.4f}", flush=True)
