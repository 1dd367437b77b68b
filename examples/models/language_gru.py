"""language_gru: which of 20 languages a short text is written in, by a GRU that reads its UTF-8 bytes.

The texts come from the translations of Django and Wagtail; the evaluation uses messages that training sees in no language.
"""
import re
import textwrap
from pathlib import Path
from zlib import crc32

import django
import numpy as np
import torch
import wagtail
from torch import nn

import common
import evaluate

NAME = "language_gru"
CLASSES = "cs da de en es et fi fr hr hu id it nb nl pl pt ro sk sv tr".split()
LENGTH = 64  # bytes; shorter texts are padded in front with zeros, so that the last state is the text's


def plain(literals):
    """The text of adjacent string literals, without placeholders such as %(name)s, HTML tags and escapes."""
    text = "".join(re.findall(r'"(.*)"', literals))
    return " ".join(re.sub(r"%\(\w+\)[sd]|%[sd]|\{\w*\}|<[^>]*>|&\w+;|\\n|\\", " ", text).split())


def messages(path):
    """(source, translation) of every message without plural in a gettext catalogue."""
    entry = re.compile(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n?)+)', re.MULTILINE)
    for found in entry.finditer(path.read_text(encoding="utf-8")):
        source, text = map(plain, found.groups())
        if source:  # the empty one is the catalogue's header
            yield source, text


def catalogues(language):
    """The gettext catalogues of a language, its regional variants included."""
    for package in (django, wagtail):
        for folder in (language, f"{language}_[A-Z][A-Z]"):
            yield from sorted(Path(package.__file__).parent.glob(f"**/locale/{folder}/LC_MESSAGES/django.po"))


def corpus():
    """Training and evaluation texts (messages, cut between words into parts of 60 characters), each as [(text, label)]."""
    training, evaluation = set(), set()
    for label, language in enumerate(CLASSES):
        for path in catalogues(language):
            for source, text in messages(path):
                if language == "en":
                    text = text or source
                elif text == source:
                    continue  # a name, or not translated
                part = evaluation if crc32(source.encode()) % 8 == 0 else training
                part.update((line, label) for line in textwrap.wrap(text, 60) if len(line) >= 12)
    seen = {text for text, _ in training}
    return sorted(training), sorted(pair for pair in evaluation if pair[0] not in seen)


def encode(texts):
    """The first LENGTH bytes of each text, padded in front: uint8 [texts, LENGTH]."""
    rows = np.zeros((len(texts), LENGTH), dtype=np.uint8)
    for row, text in zip(rows, texts):
        data = text.encode()[:LENGTH]
        row[LENGTH - len(data):] = list(data)
    return rows


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(256, 32)
        self.gru = nn.GRU(32, 128, batch_first=True)
        self.head = nn.Linear(128, len(CLASSES))

    def forward(self, ids):
        _, last = self.gru(self.embed(ids))
        return self.head(last[0])


def random_part(ids):
    """Training batches lose a random stretch at the front, so that the model also copes with fragments."""
    return ids[:, int(torch.randint(0, LENGTH - 23, ())):]


def train():
    training, evaluation = corpus()
    texts, labels = zip(*training)
    model = Network()
    common.fit(model, torch.from_numpy(encode(texts)).long(), torch.tensor(labels), epochs=14, batch=64, rate=4e-3,
               augment=random_part)

    common.export(NAME, model, torch.ones(2, 16, dtype=torch.long), {0: ("batch", None), 1: ("length", None)})
    texts, labels = zip(*(evaluation[i] for i in np.random.default_rng(0).permutation(len(evaluation))))
    common.write_evaluation(NAME, encode(texts), np.array(labels), CLASSES)
    inputs, _ = evaluate.read_evaluation(NAME)
    common.write_test_data(NAME, [inputs[:1], inputs[1:6, LENGTH // 2:]])
