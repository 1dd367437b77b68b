"""digits_mlp: handwritten digits of 8x8 pixels, classified by a multi-layer perceptron."""
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import common
import evaluate

NAME = "digits_mlp"
SCALE = 1 / 16  # pixels are 0..16


def train():
    digits = load_digits()
    x_train, x_eval, y_train, y_eval = train_test_split(
        digits.data, digits.target, test_size=600, random_state=0, stratify=digits.target)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    jitter = lambda x: x + 0.1 * torch.randn_like(x)
    common.fit(model, torch.tensor(x_train, dtype=torch.float32) * SCALE, torch.tensor(y_train), epochs=60, batch=32,
               augment=jitter)

    common.export(NAME, model, torch.zeros(2, 64), {0: ("batch", None)})
    common.write_evaluation(NAME, x_eval.astype("uint8"), y_eval, range(10), SCALE)
    inputs, _ = evaluate.read_evaluation(NAME)
    common.write_test_data(NAME, [inputs[:1], inputs[1:9]])
