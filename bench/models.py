"""Exports the networks of the benchmark to ONNX with seeded random weights: `models.py OUT_DIR`. Speed does not depend on the
weights' values as long as none of them is denormal or zero, which the checks below see to.

Needs: torch torchvision transformers onnx onnxscript
"""
import pathlib, sys, warnings
import torch, torchvision
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

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


class Writer(nn.Module):
    """GPT-2 small: logits of all positions of a prompt."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT2LMHeadModel(GPT2Config(attn_implementation="eager", use_cache=False))

    def forward(self, input_ids):
        return self.gpt(input_ids=input_ids, use_cache=False).logits


def twice(before, after):
    """Two convolutions as U-Nets have them."""
    of = lambda width: [nn.Conv2d(width, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*of(before), *of(after))


class Segmenter(nn.Module):
    """A U-Net of four levels, 32 to 256 channels, that enlarges by nearest neighbours."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([twice(3, 32), twice(32, 64), twice(64, 128), twice(128, 256)])
        self.up = nn.ModuleList([twice(384, 128), twice(192, 64), twice(96, 32)])
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x):
        kept = []
        for level in self.down:
            x = level(nn.functional.max_pool2d(x, 2) if kept else x)
            kept.append(x)
        for level, other in zip(self.up, kept[-2::-1]):
            x = level(torch.cat([nn.functional.interpolate(x, scale_factor=2.0), other], 1))
        return self.head(x)


class Layer(nn.Module):
    """A layer of a decoder: attention over what is kept and one token more, then a gated MLP."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.wide, self.gate = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.narrow = nn.Linear(hidden, width, bias=False)

    def forward(self, x, keys, values, mask):
        normal = self.before(x)
        query, key, value = (f(normal).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        keys, values = torch.cat([keys, key], 2), torch.cat([values, value], 2)
        seen = torch.softmax(query @ keys.mT * self.scale + mask, -1) @ values
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        normal = self.between(x)
        return x + self.narrow(nn.functional.silu(self.gate(normal)) * self.wide(normal)), keys, values


class Step(nn.Module):
    """One token of a decoder of 110 million parameters after 256 others: bound by the weights' way from memory."""

    def __init__(self, layers=12, width=768, heads=12, hidden=2048, words=32000):
        super().__init__()
        self.table, self.words = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.layers, self.last = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers)), nn.RMSNorm(width)

    def forward(self, token, mask, *kept):
        x, cache = self.table(token), []
        for layer, keys, values in zip(self.layers, kept[::2], kept[1::2]):
            x, *new = layer(x, keys, values, mask)
            cache += new
        return self.words(self.last(x)), *cache


def step():
    kept = {f"{name}_{k}": torch.randn(1, 12, 256, 64) for k in range(12) for name in ("keys", "values")}
    return {"token": torch.randint(0, 1000, (1, 1)), "mask": torch.zeros(1, 1, 1, 257), **kept}


def portrait():
    return torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)


def tabular():
    return nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1), nn.Sigmoid())


def picture(batch=1, size=224):
    return {"x": torch.randn(batch, 3, size, size)}


def tokens(count, batch=1):
    return {"input_ids": torch.randint(0, 1000, (batch, count)), "attention_mask": torch.ones(batch, count, dtype=torch.long)}


MODELS = {
    "resnet50": (torchvision.models.resnet50, picture),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, picture),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, picture),
    "convnext_tiny": (torchvision.models.convnext_tiny, picture),
    "vit_b_16": (torchvision.models.vit_b_16, picture),
    "deeplabv3_mbv3": (portrait, picture),
    "gpt2_s64": (Writer, lambda: {"input_ids": torch.randint(0, 1000, (1, 64))}),
    "decoder_step": (Step, step),
    "bert_base_s128": (Encoder, lambda: tokens(128)),
    "lstm_kws": (Keywords, lambda: {"x": torch.randn(1, 98, 40)}),
    "resnet50_batch8": (torchvision.models.resnet50, lambda: picture(8)),
    "resnet18": (torchvision.models.resnet18, picture),
    "unet_256": (Segmenter, lambda: picture(1, 256)),
    "mobilenet_v2_batch8": (torchvision.models.mobilenet_v2, lambda: picture(8)),
    "bert_base_s128_batch8": (Encoder, lambda: tokens(128, 8)),
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
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    assert output.isfinite().all() and (output.numel() == 1 or output.std() > 1e-3), "the output does not vary"
    return model


def make(out, name):
    """Exports a network, if it is not there."""
    path = out / f"{name}.onnx"
    if path.exists():
        return
    build, example = MODELS[name]
    torch.manual_seed(0)
    with torch.no_grad():
        inputs = example()
        model = settle(build().eval(), tuple(inputs.values()))
        part = path.with_suffix(".part")
        torch.onnx.export(model, tuple(inputs.values()), part, input_names=list(inputs), opset_version=18, dynamo=True, external_data=False,
                          verbose=False)
    part.rename(path)
    print(f"{path}: {path.stat().st_size >> 20} MiB", flush=True)


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        make(out, name)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
