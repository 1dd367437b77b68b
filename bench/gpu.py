"""infc beside PyTorch on a GPU: `gpu.py INFC OUT_DIR PAGE`. Needs torch with CUDA, torchvision, transformers, onnx, onnxscript, numpy.

Makes the networks of `models.py`, compiles them with infc in each precision, and times batch 1 of infc (`infc bench`), of PyTorch eager, and of
torch.compile with CUDA graphs, in the same precision: whole runs by the clock, with the copies of inputs and outputs. Then
a product of bf16 matrices of 4096 x 4096 beside torch.matmul (cuBLAS). Writes the tables with date and device to PAGE.
"""
import datetime, json, pathlib, subprocess, sys, time
import numpy, torch
import models

PRECISIONS = {
    "f32": ("f32", torch.float32),
    "tf32": ("tf32", torch.float32),
    "bf16": ("bf16", torch.bfloat16),
    "f16": ("f16", torch.float16),
}
SECONDS = 3


def timed(run):
    """Median of runs in ms, by the clock: each begins and ends with nothing under way."""
    for _ in range(20):
        run()
    torch.cuda.synchronize()
    times = []
    while sum(times) < SECONDS and len(times) < 5000:
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2] * 1e3


def tensors(output):
    """All tensors in what a model gives."""
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else []
    return [t for part in parts for t in tensors(part)]


def infc(binary, model, math, dims=()):
    """What `infc bench` says of the model: `median_ms` of whole runs with copies, `device_median_ms` of its steps by the device's clock."""
    out = model.with_suffix(f".{math}.infc")
    subprocess.run([binary, "compile", model, "--target", "nvidia", "--math", math, "-o", out, *dims], check=True, capture_output=True)
    said = subprocess.run([binary, "bench", out, "--seconds", str(SECONDS), "--json"], check=True, capture_output=True, text=True).stdout
    return json.loads(said)


def peers(name, inputs, dtype, tf32):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.manual_seed(0)
    model = models.MODELS[name][0]().eval().cuda()
    model = model.to(dtype) if dtype != torch.float32 else model
    there = {k: (v.to(dtype) if v.is_floating_point() else v).pin_memory() for k, v in inputs.items()}
    move = lambda: [v.cuda(non_blocking=True) for v in there.values()]

    def call(m):
        with torch.inference_mode():
            for t in tensors(m(*move())):
                t.cpu()

    eager = timed(lambda: call(model))
    compiled = torch.compile(model, mode="reduce-overhead")
    return eager, timed(lambda: call(compiled))


def product(binary, folder):
    """TFLOP/s of a product of 4096 x 4096 in bf16: infc and cuBLAS, without copies."""
    import onnx
    from onnx import TensorProto, helper

    n = 4096
    port = lambda name: helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [n, n])
    # Random numbers, as zeros take less power; of a size that products keep.
    values = torch.randn(n, n) / n**0.5
    raw = values.to(torch.bfloat16).view(torch.int16).numpy().astype(numpy.int16).tobytes()
    weights = helper.make_tensor("b", TensorProto.BFLOAT16, [n, n], raw, raw=True)
    # Many products in a row, so that copies do not count: the difference between two lengths is the time of products.
    times = {}
    for count in (4, 20):
        nodes = [helper.make_node("MatMul", [f"x{k}", "b"], [f"x{k + 1}"]) for k in range(count)]
        graph = helper.make_graph(nodes, "product", [port("x0")], [port(f"x{count}")], [weights])
        path = folder / f"product{count}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
        times[count] = infc(binary, path, "f32")["device_median_ms"]
    ours = (times[20] - times[4]) / 16
    # The same for cuBLAS, by events.
    a, b = torch.randn(n, n, dtype=torch.bfloat16, device="cuda"), values.to(torch.bfloat16).cuda()

    def row(count):
        x = a
        for _ in range(count):
            x = torch.matmul(x, b)

    def by_events(run):
        times = []
        for _ in range(100):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times)[len(times) // 2]

    theirs = (by_events(lambda: row(20)) - by_events(lambda: row(4))) / 16
    return [2 * n**3 / (t * 1e9) for t in (ours, theirs)]


def main():
    binary, out, page = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Performance on a GPU",
        "",
        f"Made by `./x gpu` on {datetime.date.today()}; do not edit. Device: {torch.cuda.get_device_name()}, PyTorch {torch.__version__}.",
        "Batch 1, median of whole runs with copies of inputs and outputs, ms.",
        "",
        "| model | precision | infc | its steps alone | PyTorch eager | torch.compile, CUDA graphs | infc / best peer |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    models.main(out)
    for name, (_, make) in models.MODELS.items():
        path = out / f"{name}.onnx"
        for precision, (math, dtype) in PRECISIONS.items():
            said = infc(binary, path, math)
            ours, device = said["median_ms"], said["device_median_ms"]
            eager, compiled = peers(name, make(), dtype, precision == "tf32")
            ratio = ours / min(eager, compiled)
            lines.append(f"| {name} | {precision} | {ours:.3f} | {device:.3f} | {eager:.3f} | {compiled:.3f} | {ratio:.2f} |")
            print(lines[-1], flush=True)
    ours, theirs = product(binary, out)
    lines += ["", f"bf16 product of 4096 x 4096: infc {ours:.0f} TFLOP/s, cuBLAS {theirs:.0f} TFLOP/s ({ours / theirs:.0%})."]
    print(lines[-1])
    page.write_text("\n".join(lines) + "\n")


main()
