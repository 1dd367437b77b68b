"""Train the student that `infc distill` made of glyphs_cnn where labels are few, and the same network from scratch.

train.py export INFC FOLDER [SEEDS]        training images, and by `infc distill` teacher and student, into FOLDER/SEED
train.py train FOLDER [SEEDS] [JOBS]       the student by its teacher, and the network from scratch: FOLDER/SEED/trained.onnx, a table
train.py baselines FOLDER [SEEDS] [JOBS]   the network from scratch with more labels than the student has
train.py check INFC FOLDER                 brings the student of seed 0 back through `infc compile` and `infc verify`

JOBS trainings run at a time, on a GPU if there is one.

Of POOL images a class only LABELLED have a label, and the images that the teacher was trained on are not at hand. The student learns of what the
teacher says of all images and of the labels that there are; the network from scratch has the labelled images. All have the same architecture,
augmentation, number of steps, batch, schedule and averaging of weights. The evaluation uses fonts that training never sees.
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

POOL, LABELLED, MORE = 1000, 20, (50, 300)  # images a class: all, those with a label, those with a label in the baselines
STEPS, BATCH, RATE, DRAWS = 7500, 128, 2e-2, 12
SMOOTHING = {LABELLED: 0.1}  # of the labels from scratch, by their number: the best of 0.05, 0.1 and 0.2
RATIO, TEMPERATURE, FEATURES, CALIBRATION = "0.25", "1", "0", 512
WAYS = {"train": ["distilled", f"from scratch, {LABELLED} labels a class"], "baselines": [f"from scratch, {n} labels a class" for n in MORE]}


def as_input(pixels):
    """Images `[n, 28, 28]` of bytes as the input `[n, 1, 28, 28]`, channels last in memory, which makes pooling several times faster."""
    return torch.from_numpy(pixels[..., None] / np.float32(255)).permute(0, 3, 1, 2)


def export(infc, folder, seeds):
    import glyphs_cnn

    for seed in seeds:
        to = folder / str(seed)
        to.mkdir(parents=True, exist_ok=True)
        images, labels = glyphs_cnn.render(glyphs_cnn.TRAINING_FONTS, POOL, np.random.default_rng(100 + seed))
        np.savez(to / "training.npz", images=np.uint8(np.round(255 * images)), labels=labels)
        noisy = glyphs_cnn.degrade(images[:CALIBRATION], np.random.default_rng(seed))
        np.savez(to / "calibration.npz", inputs=noisy[:, None], scale=np.float32(1 / 255))
        subprocess.run([infc, "distill", MODELS / "glyphs_cnn/model.onnx", "--ratio", RATIO, "--temperature", TEMPERATURE,
                        "--features", FEATURES, "--data", to / "calibration.npz", "-o", to], check=True)


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


def first(labels, count):
    """True for the first `count` images of each class."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[torch.nonzero(labels == label)[:count, 0]] = True
    return chosen


def batches(count, random):
    """Numbers of the images of a batch, endlessly: all images in a new order each time."""
    while True:
        order = torch.from_numpy(random.permutation(count))
        yield from order[:count // BATCH * BATCH].split(BATCH)


def answers(teacher, images, seed):
    """What the teacher gives for each image as it lies: the mean over some draws of noise. It errs far less often than in what it says of one view, and less
    than of moved images, which it was never shown."""
    import glyphs_cnn

    random = np.random.default_rng(seed)
    parts = []
    for part in images.split(512):
        clean = part[:, 0].float().cpu().numpy() / 255
        with torch.no_grad():
            views = [teacher(as_input(glyphs_cnn.degrade(clean, random)).to(images.device)) for _ in range(DRAWS)]
        parts.append({name: torch.stack([view[name] for view in views]).mean(0) for name in views[0]})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def train(net, images, seed, student, loss):
    """Trains in place by `loss(outputs, chosen, progress)`, where `chosen` are numbers of images. `student` is the generated module."""
    import glyphs_cnn

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    device = images.device
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS, pct_start=0.2)
    average = student.Average(net)
    net.train()
    for step, chosen in zip(range(STEPS), batches(len(images), random)):
        chosen = chosen.to(device)
        clean = moved(images[chosen].float() / 255, random)[:, 0].cpu().numpy()
        value = loss(net(as_input(glyphs_cnn.degrade(clean, random)).to(device)), chosen, step / STEPS)
        optimizer.zero_grad()
        value.backward()
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
    """Trains a network of a seed in one of the ways; its accuracy before, the teacher's, and its accuracy after."""
    import evaluate

    folder, seed, way = job
    start = time.time()
    torch.set_num_threads(1)
    folder = folder / str(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, y = evaluate.read_evaluation("glyphs_cnn")
    student, description = load_module(folder, "student"), json.loads((folder / "distill.json").read_text())
    net = student.Student(folder / "student.onnx")
    teacher = load_module(folder, "teacher").Teacher(folder / "teacher.onnx")
    for module, name in ((net, "student"), (teacher, "teacher")):
        apart = same_as_onnx(module, folder / f"{name}.onnx", x[:64])
        assert apart < 1e-3, f"{name}.py differs from {name}.onnx by {apart}"
    x, y = torch.from_numpy(x).to(device), torch.from_numpy(y.astype(np.int64)).to(device)
    net, teacher = net.to(device).eval(), teacher.to(device).eval()
    before, limit = accuracy(net, x, y), accuracy(teacher, x, y)

    arrays = np.load(folder / "training.npz")
    images, labels = torch.from_numpy(arrays["images"])[:, None], torch.from_numpy(arrays["labels"])
    distilled = way == "distilled"
    count = LABELLED if distilled else int(way.split()[2])
    known = first(labels, count)
    if distilled:
        labels[~known] = -1  # nobody knows them
    else:
        images, labels = images[known], labels[known]
    images, labels = images.to(device), labels.to(device)

    if distilled:
        told = answers(teacher, images, seed)

        def loss(given, chosen, progress):
            wanted = {name: values[chosen] for name, values in told.items()}
            return student.losses(description, wanted, given, labels[chosen], progress)
    else:
        torch.manual_seed(seed)
        net.reset()

        def loss(given, chosen, progress):
            return F.cross_entropy(given["logits"], labels[chosen], label_smoothing=SMOOTHING.get(count, 0.05))

    train(net, images, seed, student, loss)
    if distilled:
        net.save(folder / "student.onnx", folder / "trained.onnx")
    after = accuracy(net, x, y)
    print(f"seed {seed}, {way}: {after:.2f} %, {time.time() - start:.0f} s", flush=True)
    return before, limit, after


def train_all(folder, seeds, jobs, ways):
    todo = [(folder, seed, way) for seed in seeds for way in ways]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        done = pool.map(one, todo, chunksize=1)
    description = json.loads((folder / str(seeds[0]) / "distill.json").read_text())
    macs = [description[k]["macs"] for k in ("teacher", "student")]
    print(f"teacher {done[0][1]:.2f} %, {macs[0]:.0f} multiply-accumulates; student {100 * macs[1] / macs[0]:.1f} % of them")
    columns = [("pruned", [d[0] for d in done[::len(ways)]])] + [(way, [d[2] for d in done[k::len(ways)]]) for k, way in enumerate(ways)]
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
    elif command in WAYS:
        train_all(folder, seeds, counts[1] if len(counts) > 1 else 1, WAYS[command])
    elif command == "check":
        check(infc, folder)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
