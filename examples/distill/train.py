"""Train the student that `infc distill` made of glyphs_cnn, and the same network from scratch: train.py INFC FOLDER [SEEDS].

FOLDER gets calibration data, then teacher.onnx, student.onnx, student.py and distill.json from `infc distill`, then trained.onnx and
trained.infc. Training sees 300 images of each class (the teacher saw 500), for as many epochs as the teacher, under new noise in every epoch; the
evaluation uses fonts that training never sees.
"""
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"
sys.path.insert(0, str(MODELS))
import evaluate  # noqa: E402
import glyphs_cnn  # noqa: E402

PER_CLASS, EPOCHS, BATCH, RATE = 300, 16, 128, 1e-2


def training_images(seed):
    """Clean distorted glyphs and their labels."""
    return glyphs_cnn.render(glyphs_cnn.TRAINING_FONTS, PER_CLASS, np.random.default_rng(100 + seed))


def as_input(pixels):
    return pixels.astype(np.float32)[:, None] / 255


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_module(folder):
    spec = importlib.util.spec_from_file_location("student", folder / "student.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loss_of(description, wanted, given, labels):
    """The losses of distill.json."""
    total, temperature = 0.0, description["temperature"]
    for loss in description["losses"]:
        got = given[loss["student"]]
        if loss["kind"] == "cross_entropy":
            value = F.cross_entropy(got, labels)
        elif loss["kind"] == "kl":
            value = temperature**2 * F.kl_div(torch.log_softmax(got / temperature, -1), wanted[loss["teacher"]],
                                              reduction="batchmean")
        elif loss["kind"] == "relative_mse":
            target = wanted[loss["teacher"]]
            value = F.mse_loss(got, target) / target.var()
        else:
            raise ValueError(f"loss {loss['kind']}")
        total = total + loss["weight"] * value
    return total


def train(net, images, labels, seed, description=None, teacher=None):
    """Trains in place: with a teacher by the losses of the description, else by the labels alone."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=EPOCHS * steps, pct_start=0.2)
    net.train()
    for _ in range(EPOCHS):
        order = random.permutation(len(labels))
        for step in range(steps):
            chosen = order[step * BATCH:(step + 1) * BATCH]
            x = as_input(glyphs_cnn.degrade(images[chosen], random))
            y = torch.from_numpy(labels[chosen])
            given = net(torch.from_numpy(x))
            if teacher is None:
                loss = F.cross_entropy(given["logits"], y, label_smoothing=0.05)
            else:
                names = [o.name for o in teacher.get_outputs()]
                wanted = dict(zip(names, map(torch.from_numpy, teacher.run(None, {"input": x}))))
                loss = loss_of(description, wanted, given, y)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net, x, y):
    with torch.no_grad():
        return 100 * float((net(torch.from_numpy(x))["logits"].argmax(1).numpy() == y).mean())


def same_as_onnx(net, path, x):
    """The largest difference between the module and the ONNX file, over all outputs."""
    run = session(path)
    with torch.no_grad():
        given = net.eval()(torch.from_numpy(x))
    wanted = zip([o.name for o in run.get_outputs()], run.run(None, {"input": x}))
    return max(float(np.abs(given[name].numpy() - want).max()) for name, want in wanted)


def main():
    infc, folder = sys.argv[1], Path(sys.argv[2])
    seeds = range(int(sys.argv[3]) if len(sys.argv) > 3 else 5)
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    x, y = evaluate.read_evaluation("glyphs_cnn")
    teacher_accuracy = 100 * evaluate.accuracy("glyphs_cnn")
    rows = []
    for seed in seeds:
        start = time.time()
        images, labels = training_images(seed)
        noisy = glyphs_cnn.degrade(images[:512], np.random.default_rng(seed))
        np.savez(folder / "calibration.npz", inputs=noisy[:, None], scale=np.float32(1 / 255))
        subprocess.run([infc, "distill", MODELS / "glyphs_cnn/model.onnx", "--ratio", "0.25", "--data",
                        folder / "calibration.npz", "-o", folder], check=True, stdout=subprocess.DEVNULL)
        description = json.loads((folder / "distill.json").read_text())
        module = load_module(folder)
        student = module.Student(folder / "student.onnx")
        apart = same_as_onnx(student, folder / "student.onnx", x[:64])
        assert apart < 1e-3, f"student.py differs from student.onnx by {apart}"
        untrained = accuracy(student, x, y)
        distilled = train(student, images, labels, seed, description, session(folder / "teacher.onnx"))
        scratch = train(module.Student(folder / "student.onnx").reset(), images, labels, seed)
        rows.append([untrained, accuracy(distilled, x, y), accuracy(scratch, x, y)])
        print(f"seed {seed}: pruned {rows[-1][0]:.2f} %, distilled {rows[-1][1]:.2f} %, from scratch {rows[-1][2]:.2f} %, "
              f"module and file differ by {apart:.1e}, {time.time() - start:.0f} s", flush=True)
    distilled.save(folder / "student.onnx", folder / "trained.onnx")
    deployed = session(folder / "trained.onnx")
    assert [o.name for o in deployed.get_outputs()] == ["logits"]
    back = 100 * float((deployed.run(None, {"input": x})[0].argmax(1) == y).mean())
    assert abs(back - rows[-1][1]) < 0.2, "the saved student answers otherwise than the module"
    subprocess.run([infc, "compile", folder / "trained.onnx", "-o", folder / "trained.infc"], check=True)
    subprocess.run([infc, "verify", folder / "trained.onnx", "--backend", "llvm"], check=True)
    rows = np.array(rows)
    macs = [description[k]["macs"] for k in ("teacher", "student")]
    print(f"teacher {teacher_accuracy:.2f} %, {macs[0]:.0f} multiply-accumulates; student {100 * macs[1] / macs[0]:.1f} % of them")
    for name, column in zip(["pruned", "distilled", "from scratch"], rows.T):
        print(f"{name}: mean {column.mean():.2f} %, spread {column.min():.2f} to {column.max():.2f} %")


if __name__ == "__main__":
    main()
