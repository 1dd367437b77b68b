"""glyphs_cnn: distorted, noisy letters and digits of 28x28 pixels, classified by a small convolutional network.

The glyphs are rendered from the fonts that come with matplotlib (glyphs.py); the evaluation uses fonts that training never sees.
"""
import numpy as np
import torch
from torch import nn

import common
import evaluate
from glyphs import CLASSES, EVALUATION_FONTS, SIDE, TRAINING_FONTS, degrade, render

NAME = "glyphs_cnn"


def conv(inputs, outputs, size=3, stride=1, groups=1):
    """Convolution without bias, then batch normalization."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
                         nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = conv(channels, channels), conv(channels, channels)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class GlobalAverage(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def network():
    return nn.Sequential(
        conv(1, 16), nn.ReLU(), nn.MaxPool2d(2),
        conv(16, 16, groups=16), nn.ReLU(), conv(16, 32, size=1), nn.ReLU(),  # depthwise-separable
        conv(32, 48, stride=2), nn.ReLU(),
        Residual(48),
        GlobalAverage(),
        nn.Linear(48, len(CLASSES)))


def train():
    random = np.random.default_rng(0)
    clean, labels = render(TRAINING_FONTS, 500, random)
    as_input = lambda pixels: torch.from_numpy(pixels.astype(np.float32) / 255)[:, None]
    model = network().to(memory_format=torch.channels_last)  # trains faster so
    # Every epoch sees the same distorted glyphs under new noise.
    common.fit(model, torch.from_numpy(clean), torch.from_numpy(labels), epochs=16, rate=1e-2,
               augment=lambda x: as_input(degrade(x.numpy(), random)))

    common.export(NAME, model, torch.zeros(2, 1, SIDE, SIDE), {0: ("batch", None)}, keep_batch_norm=True)
    clean, labels = render(EVALUATION_FONTS, 54, random)
    common.write_evaluation(NAME, degrade(clean, random)[:, None], labels, CLASSES, 1 / 255)
    inputs, labels = evaluate.read_evaluation(NAME)
    common.write_test_data(NAME, [inputs[:1], inputs[1:9]])
    write_sample("R", inputs, labels)


def write_sample(character, inputs, labels):
    """One held-out sample of `character`, the median one by the model's confidence, for demonstrations."""
    inputs = inputs[labels == CLASSES.index(character)]
    logits = evaluate.run(NAME, inputs)
    margin = logits[:, CLASSES.index(character)] - np.sort(logits, axis=1)[:, -2]
    sample = inputs[[np.argsort(margin)[len(margin) // 2]]]
    np.save(evaluate.FOLDER / NAME / "sample.npy", sample)
    (evaluate.FOLDER / NAME / "sample_label.txt").write_text(character + "\n")
