"""Students of glyphs_cnn by many settings, all trained at once on a GPU: how the setting of train.py was chosen.

sweep.py DATA.npz [--seconds 70] [--final NAME,NAME] [--save FILE.npz]     DATA.npz is that of sweep_data.py

Phase A chooses: students on images of 12 of the 15 training fonts, judged on the 3 others (validation). Phase B tells: the settings with
the best validation, and networks from scratch, 5 seeds each, on all 15 fonts, judged on the evaluation set (fonts that neither teacher nor student saw).
All students of the same widths are one network with an axis of students in front; a training step is one CUDA graph.
"""
import time

STARTED = time.time()  # before torch is read, which takes its part of the seconds
import argparse
import math
import os
import re
import sys

import numpy as np
import torch
import torch.nn.functional as F

SIDE, BIG, CLASSES = 28, 96, 47
HELD_OUT = "DejaVuSansMono-Oblique STIXGeneralItalic cmb10".split()
CONVS = ["0", "3", "5", "7", "9.first", "9.second"]


# ---- images ----

def box(sigma):
    """The taps of Pillow's GaussianBlur: three boxes, whose ends count in part."""
    part = sigma * sigma / 3
    whole = np.floor((np.sqrt(12 * part + 1) - 1) / 2)
    radius = whole + (2 * whole + 1) * (whole * (whole + 1) - 3 * part) / (6 * (part - (whole + 1) ** 2))
    whole = np.floor(radius)
    inner = 1 / (2 * radius + 1)
    outer = (1 - (2 * whole + 1) * inner) / 2
    at = np.abs(np.arange(-3, 4))[None]
    one = np.where(at <= whole[:, None], inner[:, None], np.where(at == whole[:, None] + 1, outer[:, None], 0))
    spectrum = np.fft.rfft(one, 19, axis=1) ** 3  # 3 * 6 + 1 = 19 taps, so that nothing wraps around
    return np.fft.irfft(spectrum, 19, axis=1).astype(np.float32)


def distort(glyphs, p):
    """As distort of glyphs.py: `glyphs` [n, 96, 96] of 0..255, `p` the drawn values, by name."""
    n, device = len(glyphs), glyphs.device
    taps = torch.from_numpy(box(p["blur"])).to(device)
    image = glyphs.float()[None]
    image = F.conv2d(image, taps[:, None, None, :], padding=(0, 9), groups=n)
    image = F.conv2d(image, taps[:, None, :, None], padding=(9, 0), groups=n)
    cos, sin = np.cos(p["angle"]), np.sin(p["angle"])
    turn = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    lean = np.tile(np.eye(2), (n, 1, 1))
    lean[:, 0, 1] = p["shear"]
    source = turn @ lean * p["zoom"][:, None, :]
    offset = BIG / 2 - np.einsum("nij,nj->ni", source, SIDE / 2 + p["shift"])
    # Coordinates of -1..1: pixels of the small image at SIDE/2 * (g + 1), of the large one at BIG/2 * (g + 1).
    theta = np.concatenate([source * SIDE / BIG, ((source.sum(2) * SIDE / 2 + offset) * 2 / BIG - 1)[:, :, None]], 2)
    grid = F.affine_grid(torch.from_numpy(theta.astype(np.float32)).to(device), (n, 1, SIDE, SIDE), align_corners=False)
    return F.grid_sample(image[0][:, None], grid, align_corners=False)[:, 0]


def parameters_of(n, random):
    return {"angle": np.radians(random.uniform(-18, 18, n)), "shear": random.uniform(-0.2, 0.2, n),
            "zoom": BIG / SIDE / random.uniform(1.0, 1.7, (n, 1)) * random.uniform(0.9, 1.1, (n, 2)),
            "shift": random.uniform(-2.5, 2.5, (n, 2)), "blur": random.uniform(1.0, 3.0, n)}


def render(glyphs, per_class, seed):
    """`per_class` images of each class, spread over the fonts in an order of chance: bytes [47 * per_class, 28, 28], class after class."""
    random = np.random.default_rng(seed)
    fonts = glyphs.shape[1]
    which = np.concatenate([c * fonts + random.permutation(np.arange(per_class) % fonts) for c in range(CLASSES)])
    which = torch.from_numpy(which).to(glyphs.device)
    flat = glyphs.flatten(0, 1)
    parts = []
    for part in which.split(2048):
        parts.append((distort(flat[part], parameters_of(len(part), random))).clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def moved(images):
    """Images [n, 28, 28] shifted, turned, scaled and sheared a little, as in train.py."""
    n, device = len(images), images.device
    u = torch.rand(6, n, device=device) * 2 - 1
    angle, shear, zoom, squeeze = u[0] * math.radians(12), u[1] * 0.12, torch.exp(u[2] * 0.12), torch.exp(u[3] * 0.06)
    x, y = u[4] * (4 / 28), u[5] * (4 / 28)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack([cos * zoom * squeeze, (shear - sin) * zoom, x, sin * zoom, cos * zoom / squeeze, y], 1).view(n, 2, 3)
    grid = F.affine_grid(theta, (n, 1, SIDE, SIDE), align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def degrade(images):
    """As degrade of glyphs.py, of images [n, 28, 28] of 0..1, ending as the network's input (0..1 in 15 steps)."""
    n, device = len(images), images.device
    u = torch.rand(7, n, 1, 1, device=device)
    ramp = torch.linspace(-1, 1, SIDE, device=device)
    background = u[0] * 0.2 + (u[1] * 0.3 - 0.15) * ramp[:, None] + (u[2] * 0.3 - 0.15) * ramp
    images = background + (u[3] * 0.5 + 0.5) * images
    rows = torch.arange(SIDE, device=device)[None, :, None]
    bar, wide = torch.floor(u[4] * SIDE), torch.floor(u[5] * 3)
    images = torch.where((rows >= bar) & (rows < bar + wide), background, images)
    images = images + (u[6] * 0.18 + 0.02) * torch.randn(images.shape, device=device)
    return torch.round(images.clamp(0, 1) * 15) / 15


# ---- networks ----

def teacher_of(weights, device):
    """The teacher as a function of [n, 1, 28, 28]: logits. Batch normalisation is merged into the convolutions."""
    w = {}
    for k in CONVS:
        factor = weights[f"teacher/{k}.scale"] / np.sqrt(weights[f"teacher/{k}.var"] + 1e-5)
        w[k] = torch.from_numpy(weights[f"teacher/{k}.w"] * factor[:, None, None, None]).to(device)
        w[k + "b"] = torch.from_numpy(weights[f"teacher/{k}.shift"] - weights[f"teacher/{k}.mean"] * factor).to(device)
    last, bias = (torch.from_numpy(weights[f"teacher/11.{n}"]).to(device) for n in "wb")

    def run(x):
        x = F.max_pool2d(torch.relu_(F.conv2d(x, w["0"], w["0b"], padding=1)), 2)
        x = torch.relu_(F.conv2d(x, w["3"], w["3b"], padding=1, groups=16))
        x = torch.relu_(F.conv2d(x, w["5"], w["5b"]))
        x = torch.relu_(F.conv2d(x, w["7"], w["7b"], stride=2, padding=1))
        y = torch.relu_(F.conv2d(x, w["9.first"], w["9.firstb"], padding=1))
        x = torch.relu(x + F.conv2d(y, w["9.second"], w["9.secondb"], padding=1))
        return x.mean((2, 3)) @ last.T + bias

    return run


def columns(x, stride):
    """The 3x3 surroundings of each pixel: [n, c, b, h, w] to [n, c * 9, b * h' * w']."""
    u = F.pad(x, (1, 1, 1, 1)).unfold(3, 3, stride).unfold(4, 3, stride)
    n, c, b, h, w = u.shape[:5]
    return u.permute(0, 1, 5, 6, 2, 3, 4).reshape(n, c * 9, b * h * w)


class Students:
    """S students of the same widths, with an axis of students in front: values `p` [S, D], statistics of batch normalisation, their averages."""

    def __init__(self, weights, widths, configs, device):
        self.configs, self.device, self.s = configs, device, len(configs)
        get = lambda name: weights[f"{widths}/{name}"]
        self.names = [f"{k}.{n}" for k in CONVS for n in ("w", "scale", "shift")] + ["11.w", "11.b"]
        self.shapes = [get(n).shape for n in self.names]
        self.sizes = [int(np.prod(s)) for s in self.shapes]
        self.width = {k: get(f"{k}.w").shape[0] for k in CONVS}
        rows, means, variances = [], {k: [] for k in CONVS}, {k: [] for k in CONVS}
        for c in configs:
            generator = torch.Generator().manual_seed(c["seed"])
            row = []
            for n, shape in zip(self.names, self.shapes):
                if c["init"] == "pruned":
                    row.append(torch.from_numpy(get(n)).flatten())
                elif n.endswith(".w"):
                    most = 1 / math.sqrt(np.prod(shape[1:]))  # kaiming_uniform_ with a = sqrt(5)
                    row.append((torch.rand(int(np.prod(shape)), generator=generator) * 2 - 1) * most)
                else:
                    row.append(torch.full(shape, 1.0 if n.endswith("scale") else 0.0))
            rows.append(torch.cat(row))
            for k in CONVS:
                pruned = c["init"] == "pruned"
                means[k].append(torch.from_numpy(get(f"{k}.mean")) if pruned else torch.zeros(self.width[k]))
                variances[k].append(torch.from_numpy(get(f"{k}.var")) if pruned else torch.ones(self.width[k]))
        self.p = torch.stack(rows).to(device).requires_grad_()
        self.stats = [torch.cat(part[k]).to(device) for k in CONVS for part in (means, variances)]
        self.m, self.v = torch.zeros_like(self.p), torch.zeros_like(self.p)
        self.averages = [t.detach().clone() for t in [self.p, *self.stats]]
        self.loss = torch.zeros(self.s, device=device)
        each = lambda key: torch.tensor([float(c[key]) for c in configs], device=device)
        self.rate, self.decay, self.temperature, self.smooth = (each(k) for k in ("rate", "wd", "T", "eps"))

    def state(self):
        return [self.p, *self.stats, self.m, self.v, *self.averages]

    def forward(self, p, stats, x, training):
        """Logits [g, S, 47, b] of inputs [g, S, b, 28, 28]: g parts of a batch, so that products over a whole batch are many short ones."""
        g, s, b = x.shape[:3]
        part = dict(zip(self.names, p.split(self.sizes, 1)))

        def norm(x, k):
            at = 2 * CONVS.index(k)
            scale, shift = part[f"{k}.scale"].reshape(-1), part[f"{k}.shift"].reshape(-1)
            return torch.native_batch_norm(x.reshape(g, s * self.width[k], -1), scale, shift, stats[at], stats[at + 1], training, 0.1, 1e-5)[0]

        def times(k, x):
            w = part[f"{k}.w"].reshape(s, -1, x.shape[1])
            return w.expand(g, *w.shape).reshape(g * s, *w.shape[1:]) @ x

        c = self.width["0"]
        x = norm(times("0", columns(x.view(g * s, 1, b, 28, 28), 1)), "0")
        x = torch.relu(F.max_pool2d(x.view(g * s * c, b, 28, 28), 2))  # the same as the other way round
        x = x.view(g, s * c, b, 14, 14).transpose(1, 2).reshape(g * b, s * c, 14, 14)
        x = F.conv2d(x, part["3.w"].reshape(s * c, 1, 3, 3), padding=1, groups=s * c)
        x = torch.relu(norm(x.view(g, b, s * c, 196).transpose(1, 2), "3")).view(g * s, c, b * 196)
        x = torch.relu(norm(times("5", x), "5")).view(g * s, -1, b, 14, 14)
        x = torch.relu(norm(times("7", columns(x, 2)), "7")).view(g * s, -1, b, 7, 7)
        y = torch.relu(norm(times("9.first", columns(x, 1)), "9.first")).view(g * s, -1, b, 7, 7)
        y = norm(times("9.second", columns(y, 1)), "9.second").view(x.shape)
        x = torch.relu(x + y).mean((3, 4))
        return times("11", x).view(g, s, CLASSES, b) + part["11.b"][:, :, None]

    def learn(self, x, q, row):
        """A step of AdamW on inputs [g, S, b, 28, 28] and wanted distributions [g, S, b, 47]; `row` is that of the schedule."""
        z = self.forward(self.p, self.stats, x, True) / self.temperature[:, None, None]
        losses = -(q.transpose(2, 3) * torch.log_softmax(z, 2)).sum(2).mean((0, 2)) * self.temperature**2
        (g,) = torch.autograd.grad(losses.sum(), [self.p])
        with torch.no_grad():
            rate, beta, bias1, bias2, share = row.unbind(0)
            g = g * (1 / (g.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
            rate = (self.rate * rate)[:, None]
            self.p.mul_(1 - rate * self.decay[:, None])
            self.m.add_((g - self.m) * (1 - beta))
            self.v.mul_(0.999).addcmul_(g, g, value=0.001)
            self.p.sub_(rate / bias1 * self.m / ((self.v / bias2).sqrt() + 1e-8))
            for a, t in zip(self.averages, [self.p, *self.stats]):
                a.add_((t - a) * share)
            self.loss.copy_(losses.detach())

    @torch.no_grad()
    def accuracy(self, x, y):
        """In percent, of each student, by the averaged weights: inputs [n, 28, 28]."""
        right = torch.zeros(self.s, device=self.device)
        short, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        for part, wanted in zip(x.split(256), y.split(256)):
            z = self.forward(self.averages[0], self.averages[1:], part.expand(1, self.s, *part.shape).contiguous(), False)[0]
            right += (z.argmax(1) == wanted).float().sum(1)
        torch.backends.cuda.matmul.allow_tf32 = short
        return (100 * right / len(y)).cpu().numpy()


def schedule(total):
    """Rows of a step: share of the rate, first beta, corrections of both means, share of the average. As OneCycleLR(pct_start=0.2) and Average."""
    k = np.arange(total, dtype=np.float64)
    turn = max(0.2 * total - 1, 1e-9)
    up, down = np.clip(k / turn, 0, 1), np.clip((k - turn) / max(total - 1 - turn, 1e-9), 0, 1)
    between = lambda a, b, x: b + (a - b) / 2 * (1 + np.cos(np.pi * x))
    rate = np.where(k <= turn, between(1 / 25, 1, up), between(1, 1 / 25 / 1e4, down))
    beta = np.where(k <= turn, between(0.95, 0.85, up), between(0.85, 0.95, down))
    n = k + 1
    return np.stack([rate, beta, 1 - beta**n, 1 - 0.999**n, 1 - np.minimum(0.998, n / (n + 9))], 1).astype(np.float32)


# ---- what students learn of ----

class Pool:
    """Unlabelled images with what the teacher says of them; which of them have labels."""

    def __init__(self, glyphs, per_class, seed, teacher, draws, views):
        self.images = render(glyphs, per_class, seed)
        n = len(self.images)
        self.labels = torch.arange(CLASSES, device=glyphs.device).repeat_interleave(per_class)
        self.rank = torch.arange(per_class, device=glyphs.device).repeat(CLASSES)  # below L: labelled (fonts come in an order of chance)
        self.said = {}
        for name, move in (("noise", False), ("views", True)):
            if name not in views:
                continue
            sums = {k: torch.zeros(n, CLASSES, device=glyphs.device) for k in ("mean", "mean2", "logits")}
            first = None
            for draw in range(draws):
                z = answers(teacher, self.images, move)
                first = z if first is None else first
                sums["mean"] += torch.softmax(z, 1) / draws
                sums["mean2"] += torch.softmax(z / 2, 1) / draws
                sums["logits"] += z / draws
            right = lambda z: f"{100 * float((z.argmax(1) == self.labels).float().mean()):.2f}"
            note = {"noise": "unmoved", "views": "moved"}[name]
            print(f"  teacher on {note} images: {right(first)} % of one view, {right(sums['mean'])} % of {draws} together", flush=True)
            self.said[name] = sums

    def wanted(self, c):
        """Numbers of images and the distributions wanted of them, for a setting."""
        known = self.rank < c["L"]
        true = F.one_hot(self.labels, CLASSES).float()
        if c["kind"] == "label":
            at = known.nonzero()[:, 0]
            q = true[at]
        else:
            at = torch.arange(len(self.images), device=known.device)
            if c["kind"] == "online":
                q = torch.zeros(len(at), CLASSES, device=known.device)
            else:
                how, view = c["kind"].split("-")
                said = self.said[view]
                mean = said["mean2"] if c["T"] == 2 else said["mean"]
                q = {"soft": lambda: mean, "geo": lambda: torch.softmax(said["logits"] / c["T"], 1),
                     "hard": lambda: F.one_hot(said["mean"].argmax(1), CLASSES).float()}[how]()
                share = 1.0 if how == "hard" else 0.3
                q = torch.where(known[:, None], share * true + (1 - share) * q, q)
        return at, ((1 - c["eps"]) * q + c["eps"] / CLASSES)


def answers(teacher, images, move):
    parts = []
    with torch.no_grad():
        for part in images.split(4096):
            clean = part.float() / 255
            parts.append(teacher(degrade(moved(clean) if move else clean)[:, None]))
    return torch.cat(parts)


class Feed:
    """Batches for a group of students: of each its own images and wanted distributions."""

    def __init__(self, students, pools, teacher, batch):
        self.students, self.teacher, self.batch = students, teacher, batch
        images, table, wanted, seen, at = [], [], [], {}, 0
        base = {}
        for key, pool in pools.items():
            base[key] = at
            images.append(pool.images)
            at += len(pool.images)
        self.images = torch.cat(images)
        offsets, counts, at = [], [], 0
        for c in students.configs:
            key = (c["pool"], c["kind"], c["T"], c["eps"], c["L"])
            if key not in seen:
                ids, q = pools[c["pool"]].wanted(c)
                table.append(ids + base[c["pool"]])
                wanted.append(q.half())
                seen[key] = (at, len(ids))
                at += len(ids)
            offsets.append(seen[key][0])
            counts.append(seen[key][1])
        device = self.images.device
        self.table, self.wanted = torch.cat(table), torch.cat(wanted)
        self.offsets, self.counts = (torch.tensor(a, device=device)[:, None] for a in (offsets, counts))
        self.parts = next(g for g in (16, 8, 4, 2, 1) if batch % g == 0 and batch >= 8 * g or g == 1)
        self.online = sum(c["kind"] == "online" for c in students.configs)
        assert all((c["kind"] == "online") == (i < self.online) for i, c in enumerate(students.configs))

    @torch.no_grad()
    def next(self):
        s, g = self.students.s, self.parts
        b = self.batch // g
        at = (torch.rand(g, s, b, device=self.images.device) * self.counts).long()
        at = (torch.minimum(at, self.counts - 1) + self.offsets).view(-1)
        x = self.images.index_select(0, self.table.index_select(0, at))
        x = degrade(moved(x.float() / 255)).view(g, s, b, SIDE, SIDE)
        q = self.wanted.index_select(0, at).float().view(g, s, b, CLASSES)
        if self.online:
            n = self.online
            z = self.teacher(x[:, :n].reshape(g * n * b, 1, SIDE, SIDE)).view(g, n, b, CLASSES)
            eps = self.students.smooth[:n, None, None]
            p = torch.softmax(z / self.students.temperature[:n, None, None], 3)
            q = torch.cat([(1 - eps) * p + eps / CLASSES, q[:, n:]], 1)
        return x, q


# ---- training ----

class Training:
    """Groups of students trained together for as many steps as the time allows."""

    def __init__(self, name, groups, args, evaluation, validation):
        self.name, self.groups, self.args, self.evaluation, self.validation = name, groups, args, evaluation, validation
        self.device = groups[0][0].device
        self.rows = torch.zeros(100_000, 5, device=self.device)
        self.t = torch.zeros(1, dtype=torch.long, device=self.device)
        self.graph = None

    def step(self):
        row = self.rows.index_select(0, self.t)[0]
        for students, feed in self.groups:
            x, q = feed.next()
            students.learn(x, q, row)
        self.t.add_(1)

    def plan(self, total):
        self.rows[:total].copy_(torch.from_numpy(schedule(total)))

    def sync(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def prepare(self, until):
        """Captures the step, times it, and plans as many as there is time for. Weights begin anew."""
        state = [self.t] + [t for students, _ in self.groups for t in students.state()]
        before = [t.detach().clone() for t in state]
        self.plan(2000)
        if self.device.type == "cuda":
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.step()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            if not self.args.eager:
                try:
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        self.step()
                    graph.replay()
                    torch.cuda.synchronize()
                    self.graph = graph
                except Exception as e:  # a process whose capture failed is of no use any more: begin again without
                    print(f"graph capture failed ({type(e).__name__}: {e}); again without graphs", flush=True)
                    os.execv(sys.executable, [sys.executable, *sys.argv, "--eager", "--started", str(self.args.started)])
        else:
            self.step()
        once = self.graph.replay if self.graph else self.step
        count = 20 if self.device.type == "cuda" else 2
        self.sync()
        start = time.time()
        for _ in range(count):
            once()
        self.sync()
        self.dt = (time.time() - start) / count
        with torch.no_grad():
            for t, old in zip(state, before):
                t.copy_(old)
        left = until - time.time()
        self.total = self.args.steps or int(max(50, min(self.args.most, 0.94 * left / self.dt)))
        self.plan(self.total)
        self.once = once
        count = sum(students.s for students, _ in self.groups)
        print(f"{self.name}: {count} students, {'a graph' if self.graph else 'no graph'}, {1e3 * self.dt:.2f} ms a step, {self.total} steps, "
              f"{time.time() - self.args.started:.1f} s since the start", flush=True)

    def run(self, until):
        """Trains; says every 15 s how far it is. Returns a list of (config, evaluation, validation)."""
        said = time.time()
        for step in range(self.total):
            self.once()
            if step % 50 == 49:
                self.sync()
                if time.time() - said > 15:
                    said = time.time()
                    self.report(step + 1, brief=True)
                if time.time() > until:
                    print(f"{self.name}: out of time after {step + 1} of {self.total} steps", flush=True)
                    break
        self.sync()
        return self.report(step + 1)

    def report(self, steps, brief=False):
        results = []
        for students, _ in self.groups:
            e, v = students.accuracy(*self.evaluation), students.accuracy(*self.validation)
            results += [(c, e[i], v[i]) for i, c in enumerate(students.configs)]
            losses = students.loss.cpu().numpy()
            if not brief:
                for i, c in enumerate(students.configs):
                    print(f"{self.name} {c['name']} seed {c['seed']} steps {steps} eval {e[i]:.2f} val {v[i]:.2f} loss {losses[i]:.3f}", flush=True)
        for name in dict.fromkeys(c["name"] for c, _, _ in results):
            e, v = (np.array([r[k] for r in results if r[0]["name"] == name]) for k in (1, 2))
            print(f"{self.name} mean {name}: steps {steps} eval {e.mean():.2f} ({e.min():.2f} to {e.max():.2f}) val {v.mean():.2f}, {len(e)} seeds, "
                  f"{time.time() - self.args.started:.0f} s", flush=True)
        return results


def settings():
    """All settings by name."""
    base = dict(init="random", kind="hard-noise", eps=0.05, rate=2e-2, wd=0.01, T=1, L=20, N=1, seeds=1)
    table = {}

    def add(name, **more):
        table[name] = {**base, "widths": name.split("/")[0], **more, "name": name}

    add("fitted/online", kind="online", eps=0.0)
    add("fitted/online.smooth", kind="online")
    for widths in ("fitted", "even"):
        add(f"{widths}/hard", seeds=2)
        add(f"{widths}/soft", kind="soft-noise", eps=0.0, seeds=2 if widths == "fitted" else 1)
        add(f"{widths}/geo", kind="geo-noise", eps=0.0)
        add(f"{widths}/hard.more", N=3)
        add(f"{widths}/hard.pruned", init="pruned")
        add(f"{widths}/scratch20", kind="label", seeds=2 if widths == "fitted" else 1)
        add(f"{widths}/scratch50", kind="label", L=50)
        add(f"{widths}/scratch300", kind="label", L=300)
    add("fitted/soft.smooth", kind="soft-noise")
    add("fitted/hard.views", kind="hard-views")
    add("fitted/soft.views", kind="soft-views", eps=0.0)
    add("fitted/soft.pruned", kind="soft-noise", eps=0.0, init="pruned")
    add("fitted/soft.T2", kind="soft-noise", eps=0.0, T=2)
    add("fitted/hard.rate4", rate=4e-2)
    add("fitted/scratch20.s1", kind="label", eps=0.1)
    add("fitted/scratch20.s2", kind="label", eps=0.2)
    add("fitted/scratch20.wd", kind="label", wd=0.1)
    add("fitted/scratch20.slow", kind="label", rate=1e-2)
    return table


def group(weights, configs, pools, teacher, args, device):
    """Groups of students by their widths, each with its feed. Those that ask the teacher at each step come first."""
    groups = []
    for widths in dict.fromkeys(c["widths"] for c in configs):
        own = sorted((c for c in configs if c["widths"] == widths), key=lambda c: c["kind"] != "online")
        students = Students(weights, widths, own, device)
        used = {c["pool"] for c in own}
        groups.append((students, Feed(students, {k: p for k, p in pools.items() if k in used}, teacher, args.batch)))
    return groups


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="glyphs, weights and samples, from sweep_data.py")
    parser.add_argument("--seconds", type=float, default=70)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=0, help="of each phase, instead of as many as there is time for")
    parser.add_argument("--most", type=int, default=30_000, help="steps at most")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pool", type=int, default=1000, help="images a class")
    parser.add_argument("--draws", type=int, default=12, help="answers of the teacher for each image")
    parser.add_argument("--seeds", type=int, default=5, help="of phase B")
    parser.add_argument("--only", default="", help="a regular expression: settings of phase A")
    parser.add_argument("--final", default="", help="settings of phase B, separated by commas: without phase A")
    parser.add_argument("--share", type=float, default=0.42, help="end of phase A, as a share of the seconds")
    parser.add_argument("--save", default="", help="where the students of phase B go")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--started", type=float, default=STARTED)
    args = parser.parse_args()
    device = torch.device(args.device)
    since = lambda: f"{time.time() - args.started:.1f} s since the start"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}", flush=True)
    weights = dict(np.load(args.data))
    tensor = lambda name: torch.from_numpy(weights[name]).to(device)
    evaluation, validation = ((tensor(f"{k}_x")[:, 0].float() / 255, tensor(f"{k}_y").long()) for k in ("eval", "val"))
    glyphs = tensor("glyphs_training")
    teacher = teacher_of(weights, device)
    print(since(), flush=True)
    with torch.no_grad():
        for name, (x, y) in (("evaluation", evaluation), ("validation", validation)):
            print(f"teacher on the {name} set: {100 * float((teacher(x[:, None]).argmax(1) == y).float().mean()):.2f} %")
    print("evaluation fonts, images as the student gets them:")
    Pool(tensor("glyphs_evaluation"), min(args.pool, 300), 5, teacher, args.draws, ("noise", "views"))
    table = settings()
    chosen, best_scratch = [n for n in args.final.split(",") if n], None
    deadline = args.started + args.seconds - 2
    cost = None

    if not chosen:
        kept = [i for i, n in enumerate(weights["fonts_training"]) if n not in HELD_OUT]
        own = [c for c in table.values() if re.search(args.only, c["name"])]
        configs = [{**c, "seed": seed, "pool": (c["N"], seed)} for c in own for seed in range(c["seeds"])]
        pools = {}
        for key in sorted({c["pool"] for c in configs}):
            views = {c["kind"].split("-")[1] for c in configs if c["pool"] == key and "-" in c["kind"]}
            print(f"12 fonts, seed {key[1]}, {key[0] * args.pool} a class:", flush=True)
            pools[key] = Pool(glyphs[:, kept], key[0] * args.pool, 100 + key[1], teacher, args.draws, views | ({"views"} if key == (1, 0) else set()))
        until = min(args.started + args.share * args.seconds, deadline)
        training = Training("A", group(weights, configs, pools, teacher, args, device), args, evaluation, validation)
        training.prepare(until)
        results = training.run(until + 2)
        cost = training.dt / len(configs)
        value = {n: np.mean([v for c, _, v in results if c["name"] == n]) for n in {c["name"] for c in configs}}
        order = sorted((n for n in value if "scratch" not in n), key=lambda n: -value[n])
        chosen = order[:1] + [n for n in order[1:] if n.startswith(order[0].split("/")[0])][:1] if order else []
        scratch = [n for n in value if "/scratch20" in n and n.startswith("fitted")]
        best_scratch = max(scratch, key=lambda n: value[n]) if scratch else None
        print(f"by validation: {', '.join(f'{n} {value[n]:.2f}' for n in order)}; from scratch {best_scratch}", flush=True)
        del training, pools
    if device.type == "cuda":
        torch.cuda.empty_cache()

    widths = chosen[0].split("/")[0]
    few = {**table[best_scratch or "fitted/scratch20.s1"], "widths": widths}
    few["name"] = few["name"].replace("fitted", widths)
    own = [table[n] for n in chosen] + [few, table[f"{widths}/scratch50"], table[f"{widths}/scratch300"]]
    if cost is not None and device.type == "cuda":
        # The last ones are left out where the steps would be few.
        for least in (len(chosen) + 2, len(chosen) + 1):
            if len(own) > least and 0.9 * (deadline - time.time()) / (cost * args.seeds * len(own)) < 8000:
                own = own[:least]
        if len(own) == 3 and 0.9 * (deadline - time.time()) / (cost * args.seeds * 3) < 6000:
            own = [own[0], own[2]]
    configs = [{**c, "seed": seed, "pool": (c["N"], 10 + seed)} for c in own for seed in range(args.seeds)]
    pools = {}
    for key in sorted({c["pool"] for c in configs}):
        views = {c["kind"].split("-")[1] for c in configs if c["pool"] == key and "-" in c["kind"]}
        print(f"15 fonts, seed {key[1]}, {key[0] * args.pool} a class:", flush=True)
        pools[key] = Pool(glyphs, key[0] * args.pool, 100 + key[1], teacher, args.draws, views)
    training = Training("B", group(weights, configs, pools, teacher, args, device), args, evaluation, validation)
    training.prepare(deadline - 0.5)
    training.run(deadline)
    print("(in phase B students have seen the fonts of the validation set)")
    if args.save:
        out = {}
        for students, _ in training.groups:
            for i, c in enumerate(students.configs):
                key = f"{c['name']}:{c['seed']}"
                for n, v, shape in zip(students.names, students.averages[0].split(students.sizes, 1), students.shapes):
                    out[f"{key}:{n}"] = v[i].view(shape).cpu().numpy()
                for j, k in enumerate(CONVS):
                    for n, a in (("mean", students.averages[1 + 2 * j]), ("var", students.averages[2 + 2 * j])):
                        out[f"{key}:{k}.{n}"] = a.view(students.s, -1)[i].cpu().numpy()
        np.savez_compressed(args.save, **out)
    print(since(), flush=True)


if __name__ == "__main__":
    main()
