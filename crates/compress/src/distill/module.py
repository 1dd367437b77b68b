"""@CLASS@: generated from an ONNX graph. Parameters are the initialisers of the ONNX file beside it: load, train, save."""
import math

import numpy as np
import onnx
import onnx.numpy_helper
import torch
import torch.nn.functional as F
from torch import nn

# Attribute of the module: name of the initialiser.
INITIALISERS = {
@INITIALISERS@}


def _values(path):
    """The initialisers of an ONNX file, by name."""
    model = onnx.load(str(path))
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def _same(x, kernel, strides, dilations, lower):
    """Padding of auto_pad SAME_UPPER and SAME_LOWER: before and after each axis."""
    before, after = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations):
        total = max((math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size, 0)
        first = total - total // 2 if lower else total // 2
        before.append(first)
        after.append(total - first)
    return before + after


def _pad(x, pads, value=0.0):
    """ONNX's padding of the last axes: all beginnings, then all ends."""
    n = len(pads) // 2
    flat = [p for i in reversed(range(n)) for p in (pads[i], pads[i + n])]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(x, w, b, auto_pad, pads, strides, dilations, group):
    n = w.dim() - 2
    strides, dilations = strides or [1] * n, dilations or [1] * n
    if auto_pad.startswith("SAME"):
        pads = _same(x, w.shape[2:], strides, dilations, auto_pad == "SAME_LOWER")
    pads = pads or [0] * (2 * n)
    if pads[:n] == pads[n:]:
        padding = pads[:n]
    else:
        x, padding = _pad(x, pads), [0] * n
    return (F.conv1d, F.conv2d, F.conv3d)[n - 1](x, w, b, strides, padding, dilations, group)


def _pool(x, kind, kernel, auto_pad, pads, strides, dilations, ceil, count_pad):
    n = len(kernel)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    if auto_pad.startswith("SAME"):
        pads = _same(x, kernel, strides, dilations, auto_pad == "SAME_LOWER")
    pads = pads or [0] * (2 * n)
    if kind == "max":
        x = _pad(x, pads, -math.inf)
        return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1](x, kernel, strides, 0, dilations, ceil)
    if pads[:n] != pads[n:] or any(d != 1 for d in dilations):
        raise NotImplementedError("AveragePool with uneven padding or dilation")
    return (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1](x, kernel, strides, pads[:n], ceil, count_pad)


def _reshape(x, dims):
    return x.reshape([x.shape[i] if d == 0 else d for i, d in enumerate(dims)])


def _slice(x, starts, ends, axes, steps):
    for start, end, axis, step in zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts)):
        if step <= 0:
            raise NotImplementedError("Slice with a negative step")
        at = [slice(None)] * x.dim()
        at[axis] = slice(start, min(end, x.shape[axis]), step)
        x = x[tuple(at)]
    return x


def _reduce(x, kind, axes, keep):
    axes = axes or list(range(x.dim()))
    if kind == "mean":
        return x.mean(axes, keep)
    if kind == "sum":
        return x.sum(axes, keep)
    return (x.amax if kind == "max" else x.amin)(axes, keep)


def _layer_norm(x, scale, bias, axis, epsilon):
    shape = x.shape[axis:]
    y = F.layer_norm(x, shape, None, None, epsilon) * scale
    return y if bias is None else y + bias


def losses(description, wanted, given, labels=None, progress=0.0):
    """The losses of distill.json together, at a share `progress` of the training: `wanted` are the teacher's outputs, `given` the student's,
    `labels` numbers of classes or their shares. Without them, and where a number is below 0, the student learns from the teacher alone."""
    total, temperature = 0.0, description["temperature"]
    for loss in description["losses"]:
        weight = loss["weight"] * (1.0 if loss["until"] is None else max(0.0, 1.0 - progress / loss["until"]))
        if weight == 0.0 or (labels is None and loss["kind"] == "cross_entropy"):
            continue
        got = given[loss["student"]]
        if loss["kind"] == "cross_entropy":
            if labels.is_floating_point():
                value = F.cross_entropy(got, labels)
            else:
                # The mean over all rows, with 0 where there is no label: what few labels say does not weigh more than they are.
                known = torch.where(labels < 0, -100, labels)
                value = F.cross_entropy(got, known, reduction="sum") / known.numel()
        elif loss["kind"] == "kl":
            log = torch.log_softmax(got / temperature, -1)
            rows = log.numel() // log.shape[-1]
            value = temperature**2 * F.kl_div(log, wanted[loss["teacher"]], reduction="sum") / rows
        elif loss["kind"] == "relative_mse":
            target = wanted[loss["teacher"]]
            value = F.mse_loss(got, target) / target.var()
        else:
            raise ValueError(f"loss {loss['kind']}")
        total = total + weight * value
    return total


class Average:
    """The exponential moving average of a module's values: `update` after each step, `into` puts it into a module."""

    def __init__(self, module, decay=0.998):
        self.decay, self.steps = decay, 0
        self.values = {name: v.detach().clone() for name, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module):
        self.steps += 1
        # The first steps count little later.
        share = 1.0 - min(self.decay, self.steps / (self.steps + 9))
        for name, value in module.state_dict().items():
            self.values[name].lerp_(value, share)

    def into(self, module):
        module.load_state_dict(self.values)
        return module


class @CLASS@(nn.Module):
    def __init__(self, path=None, momentum=0.1):
        """With the initialisers of an ONNX file; without one all are 0. `momentum` is that of batch normalisation."""
        super().__init__()
        self.momentum = momentum
@INIT@        if path is not None:
            self.load(path)

    def load(self, path):
        """Takes the initialisers of an ONNX file with the same graph."""
        values = _values(path)
        with torch.no_grad():
            for name, source in INITIALISERS.items():
                getattr(self, name).copy_(torch.from_numpy(np.array(values[source])))
        return self

    def reset(self):
        """Random initial values, as for training from scratch: weights by their fan-in, scales 1, all else 0."""
        with torch.no_grad():
@RESET@        return self

    def save(self, source, path, deploy=True):
        """Writes the graph of `source` with these values. `deploy` leaves out the adapters, which only training needs."""
        model = onnx.load(str(source))
        own = {source: name for name, source in INITIALISERS.items()}
        for t in model.graph.initializer:
            if t.name in own:
                value = getattr(self, own[t.name]).detach().cpu().numpy()
                t.CopyFrom(onnx.numpy_helper.from_array(value, t.name))
        if deploy:
            graph = model.graph
            kept = [o for o in graph.output if not o.name.startswith("adapted.")]
            live, nodes = {o.name for o in kept}, []
            for node in reversed(graph.node):
                if live.intersection(node.output):
                    live.update(node.input)
                    nodes.insert(0, node)
            weights = [t for t in graph.initializer if t.name in live]
            for field, items in [(graph.output, kept), (graph.node, nodes), (graph.initializer, weights)]:
                items = [type(i).FromString(i.SerializeToString()) for i in items]
                del field[:]
                field.extend(items)
            del graph.value_info[:]
        onnx.save(model, str(path))

    def forward(self, @PARAMS@):
@FORWARD@        return {@RESULTS@}
