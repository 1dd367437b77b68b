"""infc beside PyTorch on a GPU: `gpu.py INFC OUT_DIR PAGE [NETWORK[:PRECISION]...]`. Needs torch with CUDA, torchvision, transformers, onnx, onnxscript, numpy.

Makes the networks of `models.py` (or those named), compiles them with infc in each precision, and times infc (`infc bench`), PyTorch eager, and
torch.compile with CUDA graphs, in the same precision: whole runs by the clock, with the copies of inputs and outputs, once their outputs agree. Then
a product of bf16 matrices of 4096 x 4096 beside torch.matmul (cuBLAS). Writes the tables with date and device to PAGE.

torch.compile takes half a minute of several cores for a network, so as many processes as there are cores get ready side by side; they are timed one after another while all
others wait.
"""
import concurrent.futures, datetime, json, multiprocessing, os, pathlib, subprocess, sys, tempfile, time
import numpy, torch
import models

PRECISIONS = {
    "f32": ("f32", torch.float32),
    "tf32": ("tf32", torch.float32),
    "bf16": ("bf16", torch.bfloat16),
    "f16": ("f16", torch.float16),
}
# How far outputs may be from those of PyTorch in the same precision, as a share of their norm: both round on their own, and fifty layers of random weights (resnet50) make much of it.
APART = {"f32": 1e-3, "tf32": 5e-2, "bf16": 2e-1, "f16": 5e-2}
SECONDS = 1


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


def compiled(binary, model, math):
    """The model's artifact."""
    out = model.with_suffix(f".{math}.infc")
    subprocess.run([binary, "compile", model, "--target", "nvidia", "--math", math, "-o", out], check=True, capture_output=True)
    return out


def infc(binary, out):
    """What `infc bench` says of an artifact: `median_ms` of whole runs with copies, `device_median_ms` of its steps by the device's clock."""
    said = subprocess.run([binary, "bench", out, "--seconds", str(SECONDS), "--json"], check=True, capture_output=True, text=True).stdout
    return json.loads(said)


def contender(binary, model, precision):
    """A process of its own: gets everything ready, says so, waits for a line, then times infc and both peers and prints a line of JSON."""
    math, dtype = PRECISIONS[precision]
    artifact = compiled(binary, model, math)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.manual_seed(0)
    build, make = models.MODELS[model.stem]
    with torch.no_grad():
        # The weights of the exported file.
        inputs = make()
        network = models.settle(build().eval(), tuple(inputs.values())).cuda()
    network = network.to(dtype) if dtype != torch.float32 else network
    there = {k: (v.to(dtype) if v.is_floating_point() else v).pin_memory() for k, v in inputs.items()}
    move = lambda: [v.cuda(non_blocking=True) for v in there.values()]

    def call(m):
        with torch.inference_mode():
            for t in tensors(m(*move())):
                t.cpu()

    graphs = torch.compile(network, mode="reduce-overhead")
    for _ in range(3):
        call(graphs)
    torch.cuda.synchronize()
    with torch.inference_mode():
        wanted = [t.float().cpu().numpy() for t in tensors(network(*move()))]
    apart = distance(binary, artifact, inputs, wanted)
    print("ready", flush=True)
    sys.stdin.readline()
    said = infc(binary, artifact)
    print(json.dumps([said["median_ms"], said["device_median_ms"], timed(lambda: call(network)), timed(lambda: call(graphs)), apart]), flush=True)


def distance(binary, artifact, inputs, wanted):
    """The largest distance of an output of the artifact from the one wanted, as a share of its norm."""
    import onnx

    names = [o.name for o in onnx.load(artifact.parent / f"{artifact.name.split('.')[0]}.onnx").graph.output]
    with tempfile.TemporaryDirectory() as folder:
        given = []
        for name, value in inputs.items():
            numpy.save(f"{folder}/{name}.npy", value.numpy())
            given += ["--input", f"{name}={folder}/{name}.npy"]
        subprocess.run([binary, "run", artifact, "--output-dir", f"{folder}/out", *given], check=True, capture_output=True)
        made = [numpy.load(f"{folder}/out/{name}.npy").astype(numpy.float32) for name in names]
    shares = [numpy.linalg.norm(m - w) / max(numpy.linalg.norm(w), 1e-30) for m, w in zip(made, wanted, strict=True)]
    return float(numpy.max(shares))


def contest(binary, jobs):
    """Results of `contender` for jobs (model, precision), in their order: as many as there are cores get ready side by side, and are timed one by one."""
    env = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    at_once = os.cpu_count() or 1
    for first in range(0, len(jobs), at_once):
        some = jobs[first : first + at_once]
        started = [
            subprocess.Popen([sys.executable, __file__, "--contender", binary, model, precision], env=env, text=True, stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for model, precision in some
        ]
        # What the others say is read too, or they would wait for it.
        with concurrent.futures.ThreadPoolExecutor(len(some)) as pool:
            errors = [pool.submit(p.stderr.read) for p in started]
            lines = [p.stdout.readline() for p in started]
            for (model, precision), p, line, error in zip(some, started, lines, errors):
                if line.strip() == "ready":
                    p.stdin.write("go\n")
                    p.stdin.flush()
                    line = p.stdout.readline()
                p.stdin.close()
                p.wait()
                yield model, precision, json.loads(line) if line.startswith("[") else error.result().strip().splitlines()[-1:]


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
        times[count] = infc(binary, compiled(binary, path, "f32"))["device_median_ms"]
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
    if sys.argv[1] == "--contender":
        return contender(sys.argv[2], pathlib.Path(sys.argv[3]), sys.argv[4])
    binary, out, page = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), pathlib.Path(sys.argv[3])
    wanted = [(name, precision) for name, _, precision in (a.partition(":") for a in sys.argv[4:] or models.MODELS)]
    unknown = [f"{n}:{p}" if p else n for n, p in wanted if n not in models.MODELS or p and p not in PRECISIONS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; networks are {', '.join(models.MODELS)}, precisions {', '.join(PRECISIONS)}")
    names = list(dict.fromkeys(name for name, _ in wanted))
    jobs = [(out / f"{name}.onnx", p) for name, precision in wanted for p in PRECISIONS if precision in ("", p)]
    out.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Performance on a GPU",
        "",
        f"Made by `./x gpu` on {datetime.date.today()}; do not edit. Device: {torch.cuda.get_device_name()}, PyTorch {torch.__version__}.",
        "Batch 1 unless the name says another, median of whole runs with copies of inputs and outputs, ms; *steps*: what the steps of infc take by the device's clock; *apart*: the largest distance",
        "of its outputs from PyTorch's in the same precision, as a share of their norm.",
        "",
        "| model | precision | infc | steps | PyTorch eager | torch.compile, CUDA graphs | infc / best peer | apart |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(models.make, [out] * len(names), names))
    failed = []
    for model, precision, said in contest(binary, jobs):
        if len(said) != 5:
            failed.append(f"{model.stem} {precision}: {' '.join(said)}")
            print(failed[-1], flush=True)
            continue
        ours, device, eager, graphs, apart = said
        if not apart <= APART[precision]:
            failed.append(f"{model.stem} {precision}: outputs are {apart:.1e} of their norm away from PyTorch's")
        lines.append(f"| {model.stem} | {precision} | {ours:.3f} | {device:.3f} | {eager:.3f} | {graphs:.3f} | {ours / min(eager, graphs):.2f} | {apart:.1e} |")
        print(lines[-1], flush=True)
    ours, theirs = product(binary, out)
    lines += ["", f"bf16 product of 4096 x 4096: infc {ours:.0f} TFLOP/s, cuBLAS {theirs:.0f} TFLOP/s ({ours / theirs:.0%})."]
    print(lines[-1])
    if failed:
        lines += ["", "Wrong:", ""] + [f"- {f}" for f in failed]
    page.write_text("\n".join(lines) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
