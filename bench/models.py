"""Exports the networks of the benchmark to ONNX with seeded random weights: `models.py OUT_DIR`. Speed does not depend on the
weights' values as long as none of them is denormal or zero, which the checks below see to.

Needs: torch torchvision transformers onnx onnxscript
"""
import pathlib, sys, warnings
import torch, torchvision
from torch import nn
from transformers import BertConfig, BertModel

warnings.filterwarnings("ignore")


class Encoder(nn.Module):
    """BERT base: 12 layers, 768 wide."""

    def __init__(self):
        super().__init__()
        self.bert = BertModel(BertConfig(attn_implementation="eager"), add_pooling_layer=False)

    def forward(self, input_ids, attention_mask):
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Keywords(nn.Module):
    """Keyword spotting: two LSTM layers over 98 frames of 40 features."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(40, 256, num_layers=2, batch_first=True), nn.Linear(256, 12)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def tabular():
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())


def picture():
    return {"x": torch.randn(1, 3, 224, 224)}


def tokens(count):
    return {"input_ids": torch.randint(0, 1000, (1, count)), "attention_mask": torch.ones(1, count, dtype=torch.long)}


MODELS = {
    "resnet50": (torchvision.models.resnet50, picture),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, picture),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, picture),
    "convnext_tiny": (torchvision.models.convnext_tiny, picture),
    "vit_b_16": (torchvision.models.vit_b_16, picture),
    "bert_base_s128": (Encoder, lambda: tokens(128)),
    "lstm_kws": (Keywords, lambda: {"x": torch.randn(1, 98, 40)}),
    "fraud_mlp": (tabular, lambda: {"x": torch.randn(1, 30)}),
}


def settle(model, inputs):
    """Gives weights that start as constants a spread, and batch normalisation the statistics of one pass."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for name, p in model.named_parameters():
        if p.dim() > 1 and p.std() == 0 or name.endswith("layer_scale"):
            nn.init.uniform_(p, 0.5, 1.5) if name.endswith("layer_scale") else nn.init.normal_(p, std=0.02)
    if norms:
        for m in norms:
            m.train().momentum = None
        model(torch.randn(4, *inputs[0].shape[1:]))
    model.eval()
    output = model(*inputs)
    assert output.isfinite().all() and (output.numel() == 1 or output.std() > 1e-3), "the output does not vary"
    return model


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    for name, (build, example) in MODELS.items():
        path = out / f"{name}.onnx"
        if path.exists():
            continue
        torch.manual_seed(0)
        with torch.no_grad():
            inputs = example()
            model = settle(build().eval(), tuple(inputs.values()))
            part = path.with_suffix(".part")
            torch.onnx.export(model, tuple(inputs.values()), part, input_names=list(inputs), opset_version=18, dynamo=True,
                              external_data=False, verbose=False)
        part.rename(path)
        print(f"{path}: {path.stat().st_size >> 20} MiB", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
