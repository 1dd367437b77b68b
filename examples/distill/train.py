"""Train the student that `infc distill` made of glyphs_cnn, and the same network from scratch.

train.py export INFC FOLDER [SEEDS]   training images, and by `infc distill` teacher and student, into FOLDER/SEED
train.py train FOLDER [SEEDS] [JOBS]  trains both, JOBS of them at a time, on a GPU if there is one: FOLDER/SEED/trained.onnx, a table
train.py check INFC FOLDER            brings the student of seed 0 back through `infc compile` and `infc verify`

Training sees 300 images of each class (the teacher saw 500); the evaluation uses fonts that training never sees. The network from scratch gets the
same images, labels, augmentation, number of epochs, schedule and averaging as the student: all but the teacher and the weights to begin with.
"""
import importlib.util
import json
import math
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
sys.path.insert(0, str(MODELS))

PER_CLASS, EPOCHS, BATCH, RATE = 300, 60, 128, 2e-2
RATIO, CALIBRATION = "0.25", 512


def as_input(pixels):
    """Images `[n, 28, 28]` of bytes as the input `[n, 1, 28, 28]`, channels last in memory: pooling on a CPU is several times faster so."""
    return torch.from_numpy(pixels[..., None] / np.float32(255)).permute(0, 3, 1, 2)


def export(infc, folder, seeds):
    import glyphs_cnn

    for seed in seeds:
        to = folder / str(seed)
        to.mkdir(parents=True, exist_ok=True)
        images, labels = glyphs_cnn.render(glyphs_cnn.TRAINING_FONTS, PER_CLASS, np.random.default_rng(100 + seed))
        np.savez_compressed(to / "training.npz", images=images, labels=labels)
        noisy = glyphs_cnn.degrade(images[:CALIBRATION], np.random.default_rng(seed))
        np.savez(to / "calibration.npz", inputs=noisy[:, None], scale=np.float32(1 / 255))
        subprocess.run([infc, "distill", MODELS / "glyphs_cnn/model.onnx", "--ratio", RATIO, "--data", to / "calibration.npz",
                        "-o", to], check=True)


def load_module(folder, name):
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moved(images, random):
    """Images shifted, turned, scaled and sheared a little: labels stay."""
    draw = lambda most: torch.from_numpy(random.uniform(-most, most, len(images)).astype(np.float32))
    angle, shear, zoom, squeeze = draw(math.radians(12)), draw(0.12), torch.exp(draw(0.12)), torch.exp(draw(0.06))
    x, y = draw(4 / 28), draw(4 / 28)  # of half the width: two pixels
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [torch.stack([cos * zoom * squeeze, (shear - sin) * zoom, x], 1), torch.stack([sin * zoom, cos * zoom / squeeze, y], 1)]
    grid = F.affine_grid(torch.stack(rows, 1).to(images.device), images.shape, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(net, images, labels, seed, student, description=None, teacher=None):
    """Trains in place: with a teacher by the losses of the description, else by the labels alone. `student` is the generated module."""
    import glyphs_cnn

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    device = images.device
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    steps = len(labels) // BATCH
    total = EPOCHS * steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=total, pct_start=0.2)
    average = student.Average(net)
    net.train()
    for epoch in range(EPOCHS):
        order = torch.from_numpy(random.permutation(len(labels))).to(device)
        for step in range(steps):
            chosen = order[step * BATCH:(step + 1) * BATCH]
            clean = moved(images[chosen], random)[:, 0].cpu().numpy()
            x, y = as_input(glyphs_cnn.degrade(clean, random)).to(device), labels[chosen]
            given = net(x)
            if teacher is None:
                loss = F.cross_entropy(given["logits"], y, label_smoothing=0.05)
            else:
                with torch.no_grad():
                    wanted = teacher(x)
                loss = student.losses(description, wanted, given, y, (epoch * steps + step) / total)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update(net)
    return average.into(net).eval()


def accuracy(net, x, y):
    with torch.no_grad():
        return 100 * float((net(x)["logits"].argmax(1) == y).float().mean())


def same_as_onnx(net, path, x):
    """The largest difference between the module and the ONNX file, over all outputs."""
    import onnxruntime

    run = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        given = net.eval()(torch.from_numpy(x))
    wanted = zip([o.name for o in run.get_outputs()], run.run(None, {"input": x}))
    return max(float(np.abs(given[name].numpy() - want).max()) for name, want in wanted)


def one(job):
    """Trains a network of a seed, the student or the same from scratch; its accuracy before and after."""
    import evaluate

    folder, seed, distilled = job
    start = time.time()
    torch.set_num_threads(1)
    folder = folder / str(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = evaluate.read_evaluation("glyphs_cnn")
    arrays = np.load(folder / "training.npz")
    images, labels = torch.from_numpy(arrays["images"])[:, None].to(device), torch.from_numpy(arrays["labels"]).to(device)
    student, description = load_module(folder, "student"), json.loads((folder / "distill.json").read_text())
    net = student.Student(folder / "student.onnx")
    teacher = load_module(folder, "teacher").Teacher(folder / "teacher.onnx")
    for module, name in ((net, "student"), (teacher, "teacher")):
        apart = same_as_onnx(module, folder / f"{name}.onnx", x[:64])
        assert apart < 1e-3, f"{name}.py differs from {name}.onnx by {apart}"
    x, y = torch.from_numpy(x).to(device), torch.from_numpy(y.astype(np.int64)).to(device)
    net, teacher = net.to(device).eval(), teacher.to(device).eval()
    before, limit = accuracy(net, x, y), accuracy(teacher, x, y)
    if distilled:
        train(net, images, labels, seed, student, description, teacher)
        net.save(folder / "student.onnx", folder / "trained.onnx")
    else:
        torch.manual_seed(seed)
        train(net.reset(), images, labels, seed, student)
    after = accuracy(net, x, y)
    print(f"seed {seed}, {'distilled' if distilled else 'from scratch'}: {after:.2f} %, {time.time() - start:.0f} s", flush=True)
    return before, limit, after


def train_all(folder, seeds, jobs):
    todo = [(folder, seed, distilled) for seed in seeds for distilled in (True, False)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        done = pool.map(one, todo, chunksize=1)
    description = json.loads((folder / str(seeds[0]) / "distill.json").read_text())
    macs = [description[k]["macs"] for k in ("teacher", "student")]
    print(f"teacher {done[0][1]:.2f} %, {macs[0]:.0f} multiply-accumulates; student {100 * macs[1] / macs[0]:.1f} % of them")
    columns = [("pruned", [d[0] for d in done[::2]]), ("distilled", [d[2] for d in done[::2]]), ("from scratch", [d[2] for d in done[1::2]])]
    for name, column in columns:
        column = np.array(column)
        print(f"{name}: mean {column.mean():.2f} %, spread {column.min():.2f} to {column.max():.2f} %")


def check(infc, folder):
    import evaluate
    import onnxruntime

    trained = folder / "0" / "trained.onnx"
    run = onnxruntime.InferenceSession(str(trained), providers=["CPUExecutionProvider"])
    assert [o.name for o in run.get_outputs()] == ["logits"]
    x, y = evaluate.read_evaluation("glyphs_cnn")
    print(f"{trained}: {100 * float((run.run(None, {'input': x})[0].argmax(1) == y).mean()):.2f} % in ONNX Runtime")
    subprocess.run([infc, "compile", trained, "-o", trained.with_suffix(".infc")], check=True)
    subprocess.run([infc, "verify", trained, "--backend", "llvm"], check=True)


def main():
    command, *rest = sys.argv[1:]
    infc = rest.pop(0) if command in ("export", "check") else None
    folder, counts = Path(rest[0]), [int(c) for c in rest[1:]]
    seeds = list(range(counts[0] if counts else 5))
    if command == "export":
        export(infc, folder, seeds)
    elif command == "train":
        train_all(folder, seeds, counts[1] if len(counts) > 1 else 1)
    elif command == "check":
        check(infc, folder)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
