"""Shared by the example models: the training loop, the ONNX export and the files written beside each model."""
import numpy as np
import onnx
import onnxscript.optimizer
import torch
from onnx import numpy_helper
from torch import nn

from evaluate import FOLDER, run

OPSET = 18


def fit(model, inputs, labels, *, epochs, batch=128, rate=3e-3, augment=None):
    """Train a classifier in place with AdamW and a one-cycle learning rate. `augment` maps a batch of inputs to a batch."""
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(labels)} training samples, {parameters} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = len(labels) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=epochs * steps, pct_start=0.2)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for epoch in range(epochs):
        order, total = torch.randperm(len(labels)), 0.0
        for step in range(steps):
            chosen = order[step * batch:(step + 1) * batch]
            x = augment(inputs[chosen]) if augment else inputs[chosen]
            loss = loss_of(model(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}", flush=True)
    model.eval()


def export(name, model, example, dynamic, keep_batch_norm=False):
    """Write NAME/model.onnx. `dynamic` says which axes of the input are free, as {axis: (name, largest size or None)}.

    The exporter's optimizer would merge batch normalization into the convolutions; `keep_batch_norm` leaves that to the
    compiler, as in models that come from elsewhere.
    """
    path = FOLDER / name / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    axes = {axis: torch.export.Dim(label, min=1, max=limit) for axis, (label, limit) in dynamic.items()}
    torch.onnx.export(model, (example,), path, dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                      input_names=["input"], output_names=["logits"], dynamic_shapes=(axes,), optimize=False)
    graph = onnx.load(path)
    if keep_batch_norm:
        onnxscript.optimizer.fold_constants(graph)
        onnxscript.optimizer.remove_unused_nodes(graph)
    else:  # the limits let it fold weights as well, as large as they are
        graph = onnxscript.optimizer.optimize(graph, input_size_limit=1 << 20, output_size_limit=1 << 20)
    # The exporter notes the Python source line of every node; that is of no use to a reader of the model.
    del graph.metadata_props[:]
    for part in [graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output,
                 *graph.graph.initializer]:
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def write_evaluation(name, inputs, labels, classes, scale=None):
    """Write NAME/eval.npz (held-out samples; the model's input is `inputs * scale` where there is a scale) and labels.txt."""
    arrays = {"inputs": inputs, "labels": labels.astype(np.uint8)}
    if scale is not None:
        arrays["scale"] = np.float32(scale)
    np.savez_compressed(FOLDER / name / "eval.npz", **arrays)
    (FOLDER / name / "labels.txt").write_text("".join(f"{c}\n" for c in classes), encoding="utf-8")


def write_test_data(name, batches):
    """Write NAME/test_data_set_<i> in ONNX's test layout, with ONNX Runtime's outputs."""
    for i, x in enumerate(batches):
        folder = FOLDER / name / f"test_data_set_{i}"
        folder.mkdir(exist_ok=True)
        for file, tensor, label in [("input_0.pb", x, "input"), ("output_0.pb", run(name, x), "logits")]:
            (folder / file).write_bytes(numpy_helper.from_array(tensor, label).SerializeToString())
