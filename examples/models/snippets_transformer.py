"""snippets_transformer: what kind of file a snippet of up to 128 bytes comes from, by a two-layer transformer.

The snippets are cut from CPython's standard library and headers, Django and scikit-learn; the evaluation uses files that
training never sees.
"""
import sysconfig
from pathlib import Path

import django
import numpy as np
import sklearn
import torch
from pydoc_data import topics
from torch import nn

import common
import evaluate

NAME = "snippets_transformer"
LENGTH = 128
LIMIT = 2500  # training snippets per class
CLASSES = "c css cython english html javascript po python".split()
STDLIB, HEADERS = (Path(sysconfig.get_path(kind)) for kind in ("stdlib", "include"))
DJANGO, SKLEARN = (Path(package.__file__).parent for package in (django, sklearn))
SOURCES = {
    "c": (HEADERS, "**/*.h"),
    "css": (DJANGO, "contrib/admin/**/*.css"),
    "cython": (SKLEARN, "**/*.pyx"),
    "html": (DJANGO, "**/*.html"),
    "javascript": (DJANGO, "contrib/admin/static/admin/js/**/*.js"),
    "po": (DJANGO, "**/locale/*/LC_MESSAGES/*.po"),
    "python": (STDLIB, "*.py"),
}


def documents(kind):
    """The bytes of every source document of a kind, in a fixed order."""
    if kind == "english":  # the language reference, as `help("TOPIC")` shows it
        return [text.encode() for _, text in sorted(topics.topics.items())]
    folder, pattern = SOURCES[kind]
    paths = [path for path in sorted(folder.glob(pattern)) if "vendor" not in path.parts]
    if kind == "po":  # without the header, which names people
        return [path.read_bytes().partition(b"\n\n")[2] for path in paths]
    return [path.read_bytes() for path in paths]


def snippets(kind, random):
    """Training and evaluation snippets: uint8 [n, LENGTH] each. Every third document is held out."""
    parts = [], []
    for i, data in enumerate(documents(kind)):
        for start in range(0, len(data) - LENGTH + 1, LENGTH // 2):
            parts[i % 3 == 0].append(np.frombuffer(data, np.uint8, LENGTH, start))
    return [np.stack(part)[random.permutation(len(part))] for part in parts]


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        batch, length, width = x.shape
        split = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) * (width // self.heads) ** -0.5, dim=-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Network(nn.Module):
    def __init__(self, width=64, heads=4, layers=2):
        super().__init__()
        self.embed = nn.Embedding(256, width)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(CLASSES))

    def forward(self, ids):
        x = self.embed(ids) + self.position[:ids.shape[1]]
        return self.head(self.norm(self.blocks(x)).mean(1))


def random_part(ids):
    """Training batches keep a random stretch of the snippets, so that the model also copes with shorter ones."""
    length = int(torch.randint(48, LENGTH + 1, ()))
    start = int(torch.randint(0, LENGTH - length + 1, ()))
    return ids[:, start:start + length]


def train():
    random = np.random.default_rng(0)
    training, evaluation = zip(*(snippets(kind, random) for kind in CLASSES))
    print(*(f"{kind} {len(t)}+{len(e)}" for kind, t, e in zip(CLASSES, training, evaluation)))
    gather = lambda parts, limit: (np.concatenate([p[:limit] for p in parts]),
                                   np.concatenate([np.full(len(p[:limit]), i) for i, p in enumerate(parts)]))
    x, y = gather(training, LIMIT)
    model = Network()
    common.fit(model, torch.from_numpy(x).long(), torch.from_numpy(y), epochs=12, batch=64, rate=3e-3, augment=random_part)

    common.export(NAME, model, torch.ones(2, 16, dtype=torch.long), {0: ("batch", None), 1: ("length", LENGTH)})
    x, y = gather(evaluation, 250)
    order = random.permutation(len(y))
    common.write_evaluation(NAME, x[order], y[order], CLASSES)
    inputs, _ = evaluate.read_evaluation(NAME)
    common.write_test_data(NAME, [inputs[:1], inputs[1:6, :80]])
