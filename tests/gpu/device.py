"""What only a GPU can show: `device.py INFC MODEL FOLDER`. No memory is kept over 10,000 runs of MODEL, and NVIDIA's compute-sanitizer finds
nothing in the kernels of the models in FOLDER. The sanitizer comes with the CUDA toolkit; Python needs nothing beside its own.
"""
import json, pathlib, shutil, subprocess, sys, tempfile

RUNS = 10_000
# What a process may grow by: allocators of drivers keep a little.
RSS = 4 << 20
TOOLS = ["memcheck", "racecheck", "synccheck", "initcheck"]


def leaks(infc, model):
    with tempfile.TemporaryDirectory() as folder:
        artifact = pathlib.Path(folder, "model.infc")
        subprocess.run([infc, "compile", model, "--target", "nvidia", "-o", artifact], check=True)
        done = subprocess.run(
            [infc, "bench", artifact, "--dim", "batch=1", "--seconds", "0", "--runs", str(RUNS), "--json"], check=True, capture_output=True, text=True
        )
    said = json.loads(done.stdout)
    device, host = said["device_free_first"] - said["device_free_last"], said["rss_last"] - said["rss_first"]
    print(f"{said['runs']} runs: {device} bytes of device memory and {host} of the process more at the end")
    return device > 0 or host > RSS


def sanitizer():
    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(found).exists():
        sys.exit("compute-sanitizer is not here: it comes with the CUDA toolkit")
    return found


def main():
    infc, model, folder = sys.argv[1:]
    wrong = leaks(infc, model)
    tool = sanitizer()
    for check in TOOLS:
        done = subprocess.run([tool, "--tool", check, "--error-exitcode", "9", infc, "verify", folder, "--backend", "gpu", "--jobs", "1"])
        print(f"{check}: {'clean' if done.returncode == 0 else f'status {done.returncode}'}", flush=True)
        wrong |= done.returncode != 0
    sys.exit(1 if wrong else 0)


main()
