"""Make what sweep.py reads, and check that it does as train.py: sweep_data.py INFC DATA.npz

Glyphs of all fonts, weights of the teacher and of students with fitted and with even widths, samples of the evaluation and of the validation. The check
compares images with Pillow's, networks with ONNX Runtime, and steps of training with those of the generated module under torch's AdamW.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import torch
import torch.nn.functional as F
from PIL import Image, ImageFont

import sweep
import train  # finds the models' scripts
import evaluate
import glyphs

BIASES = {"0": "val_5", "3": "val_5_1", "5": "val_30", "7": "val_41", "9.first": "val_41_1", "9.second": "val_41_2"}


def export(infc, folder):
    """Teacher and students by `infc distill`, on samples of all training fonts without labels."""
    clean, _ = glyphs.render(glyphs.TRAINING_FONTS, 60, np.random.default_rng(100))
    noisy = glyphs.degrade(clean[:train.CALIBRATION], np.random.default_rng(0))
    np.savez(folder / "calibration.npz", inputs=noisy[:, None], scale=np.float32(1 / 255))
    for widths in ("fitted", "even"):
        subprocess.run([infc, "distill", train.MODELS / "glyphs_cnn/model.onnx", "--ratio", train.RATIO, "--temperature", train.TEMPERATURE, "--features",
                        train.FEATURES, "--widths", widths, "--data", folder / "calibration.npz", "-o", folder / widths], check=True)


def weights(path, name):
    """Initialisers of an ONNX file under names of ours. A bias before batch normalisation goes into its mean: that is the same."""
    w = {t.name: onnx.numpy_helper.to_array(t).copy() for t in onnx.load(str(path)).graph.initializer}
    out = {f"{name}/11.w": w["11.weight"], f"{name}/11.b": w["11.bias"]}
    for k, bias in BIASES.items():
        out |= {f"{name}/{k}.w": w[f"{k}.0.weight"], f"{name}/{k}.scale": w[f"{k}.1.weight"], f"{name}/{k}.shift": w[f"{k}.1.bias"],
                f"{name}/{k}.mean": w[f"{k}.1.running_mean"] - w[bias], f"{name}/{k}.var": w[f"{k}.1.running_var"]}
    return out


def samples():
    out = {}
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for kind, names in (("training", glyphs.TRAINING_FONTS), ("evaluation", glyphs.EVALUATION_FONTS)):
        fonts = [ImageFont.truetype(str(folder / f"{name}.ttf"), glyphs.BIG // 2) for name in names]
        out[f"glyphs_{kind}"] = np.stack([np.stack([np.asarray(glyphs.draw_glyph(f, c)) for f in fonts]) for c in glyphs.CLASSES])
        out[f"fonts_{kind}"] = np.array(names)
    random = np.random.default_rng(7)
    clean, labels = glyphs.render(sweep.HELD_OUT, 60, random)
    out["val_x"], out["val_y"] = glyphs.degrade(clean, random)[:, None], labels.astype(np.uint8)
    x, y = evaluate.read_evaluation("glyphs_cnn")
    out["eval_x"], out["eval_y"] = np.uint8(np.round(255 * x)), y.astype(np.uint8)
    return out


class Drawn:
    """A source of chance for glyphs.distort that gives the values of `p[i]` in its order."""

    def __init__(self, p, i):
        zoom = p["zoom"][i] / (glyphs.BIG / glyphs.SIDE)
        self.values = iter([np.degrees(p["angle"][i]), p["shear"][i], 1.0, zoom, p["shift"][i], float(p["blur"][i])])

    def uniform(self, *_):
        return next(self.values)


def check_images(data):
    random = np.random.default_rng(3)
    p, flat = sweep.parameters_of(200, random), data["glyphs_training"].reshape(-1, glyphs.BIG, glyphs.BIG)
    chosen = random.integers(0, len(flat), 200)
    want = np.stack([glyphs.distort(Image.fromarray(flat[a]), Drawn(p, i)) for i, a in enumerate(chosen)])
    apart = np.abs(np.floor(sweep.distort(torch.from_numpy(flat[chosen]), p).numpy()) - 255 * want)
    print(f"images: {apart.max():.0f} of 255 apart at most, {apart.mean():.2f} in the mean")
    assert apart.max() <= 3 and apart.mean() < 0.3
    many = np.tile(want, (20, 1, 1))
    mine = sweep.degrade(torch.from_numpy(many)).numpy()
    theirs = glyphs.degrade(many, random) / 255
    print(f"noise: mean and spread {mine.mean():.3f}, {mine.std():.3f}; of glyphs.py {theirs.mean():.3f}, {theirs.std():.3f}")
    assert abs(mine.mean() - theirs.mean()) < 0.005 and abs(mine.std() - theirs.std()) < 0.005


def check_networks(data, folder):
    x = data["eval_x"][:64].astype(np.float32) / 255
    given = lambda path: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["logits"], {"input": x})[0]
    with torch.no_grad():
        apart = np.abs(sweep.teacher_of(data, "cpu")(torch.from_numpy(x)).numpy() - given(folder / "even/teacher.onnx")).max()
    print(f"teacher: {apart:.1e} from ONNX Runtime")
    assert apart < 1e-3
    for widths in ("fitted", "even"):
        students = sweep.Students(data, widths, [dict(seed=0, init="pruned", rate=1e-2, wd=0.01, T=1, eps=0.0)], "cpu")
        with torch.no_grad():
            z = students.forward(students.p, students.stats, torch.from_numpy(x)[None, :, 0][None], False)[0, 0].T
        apart = np.abs(z.numpy() - given(folder / widths / "student.onnx")).max()
        print(f"student of {widths} widths: {apart:.1e} from ONNX Runtime")
        assert apart < 1e-3


def check_steps(data, folder, steps=12):
    """Steps of students with other settings and starts, each beside the generated module, in double precision: AdamW's first steps enlarge rounding."""
    base = dict(seed=0, init="random", rate=2e-2, wd=0.01, T=1, eps=0.0)
    configs = [base, {**base, "seed": 1, "wd": 0.1, "rate": 1e-2}, {**base, "seed": 2, "T": 2}]
    n, rows = len(configs), torch.from_numpy(sweep.schedule(40)).double()
    module = train.load_module(folder / "even", "student")
    students = sweep.Students(data, "even", configs, "cpu")
    for name in ("stats", "averages"):
        setattr(students, name, [t.double() for t in getattr(students, name)])
    for name in ("m", "v", "loss", "rate", "decay", "temperature"):
        setattr(students, name, getattr(students, name).double())
    students.p = students.p.detach().double().requires_grad_()
    nets = []
    for i in range(n):
        net = module.Student(folder / "even/student.onnx").reset().double().train()
        attribute = {source: name for name, source in module.INITIALISERS.items()}
        with torch.no_grad():
            for name, values, shape in zip(students.names, students.p.split(students.sizes, 1), students.shapes):
                if name.endswith(".w"):
                    getattr(net, attribute["11.weight" if name == "11.w" else name[:-2] + ".0.weight"]).copy_(values[i].view(shape))
        # Biases before batch normalisation do nothing; left out, as in sweep.py.
        own = [p for name, p in net.named_parameters() if not name.startswith("w_val_")]
        optimizer = torch.optim.AdamW(own, lr=configs[i]["rate"], weight_decay=configs[i]["wd"])
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=configs[i]["rate"], total_steps=40, pct_start=0.2)
        nets.append((net, optimizer, schedule, module.Average(net)))
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        x = torch.rand(2, n, 8, 28, 28, generator=generator).double()
        q = torch.softmax(3 * torch.randn(2, n, 8, sweep.CLASSES, generator=generator).double(), 3)
        students.learn(x, q, rows[step])
        for i, (net, optimizer, schedule, average) in enumerate(nets):
            t = configs[i]["T"]
            loss = F.cross_entropy(net(x[:, i].reshape(-1, 1, 28, 28))["logits"] / t, q[:, i].flatten(0, 1)) * t**2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update(net)
    x = torch.from_numpy(data["eval_x"][:64] / 255)
    with torch.no_grad():
        mine = students.forward(students.averages[0], students.averages[1:], x[None, :, 0].expand(1, n, 64, 28, 28).contiguous(), False)[0]
        for i, (net, _, _, average) in enumerate(nets):
            theirs = average.into(net).eval()(x)["logits"]
            apart = float((mine[i].T - theirs).abs().max() / theirs.abs().max())
            print(f"after {steps} steps of setting {i}: {apart:.1e} of the largest logit from torch's")
            assert apart < 1e-5


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        export(sys.argv[1], folder)
        data = samples() | weights(folder / "even/teacher.onnx", "teacher")
        for widths in ("even", "fitted"):
            data |= weights(folder / widths / "student.onnx", widths)
        check_images(data)
        check_networks(data, folder)
        check_steps(data, folder)
    np.savez_compressed(sys.argv[2], **data)


if __name__ == "__main__":
    main()
