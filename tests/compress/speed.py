"""Times of a model before and after quantisation: both compiled, run one after the other by `infc bench`, in turns.

The variable TIMED has a command that runs another one undisturbed, such as "chrt -f 50 taskset -c 1".
"""
import json
import os
import subprocess

ROUNDS = 3


def faster(infc, before, after, out, options=()):
    """Least milliseconds of a run of both models. `options` go to `infc bench`."""
    artifacts = [out / f"{name}.infc" for name in ("before", "after")]
    for model, artifact in zip((before, after), artifacts):
        subprocess.run([infc, "compile", model, "-o", artifact], check=True, stdout=subprocess.DEVNULL)
    least = [float("inf")] * 2
    for _ in range(ROUNDS):
        for k, artifact in enumerate(artifacts):
            command = [*os.environ.get("TIMED", "").split(), infc, "bench", artifact, "--seconds", "1", "--threads", "1", "--json",
                       *options]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            least[k] = min(least[k], json.loads(done.stdout)["min_ms"])
    return least
