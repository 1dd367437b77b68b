"""Builds the test programs of the workspace and runs them side by side, as many at once as there are CPUs.

`cargo test` runs one program after the other, and each has a test or two that take most of its time, so that half of a machine waits.
Here each program runs its tests on one thread. Programs that took long the last time come first; without a last time, those in SLOW.
What a program prints is shown if it fails. The status is 1 if one did, or if one took longer than LIMIT.

    python3 tests/side_by_side.py --profile checked --workspace     # the arguments of `cargo test`
"""

import json
import os
import re
import subprocess
import sys
import threading
import time

# Programs that take long, where no earlier run tells.
SLOW = ["math", "ops", "prune_fit", "compress", "plans", "nests", "data", "contractions", "bytes", "batch"]
# Seconds that a program may take.
LIMIT = 1200


def programs(arguments):
    """Name, path and folder of each test program, and the build folder."""
    build = subprocess.Popen(["cargo", "test", "--no-run", "--message-format=json-render-diagnostics", *arguments], stdout=subprocess.PIPE)
    found = []
    for line in build.stdout:
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["profile"]["test"] and message["executable"]:
            folder = os.path.dirname(message["manifest_path"])
            target = message["target"]
            name = os.path.basename(folder) + ("" if "lib" in target["kind"] else " " + target["name"])
            found.append((name, message["executable"], folder))
    if build.wait() != 0:
        sys.exit(build.returncode)
    return found


def run(program, folder):
    """Runs one; its status and output."""
    environment = {**os.environ, "CARGO_MANIFEST_DIR": folder, "RUST_TEST_THREADS": "1"}
    try:
        done = subprocess.run([program], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT)
        return done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as e:
        return 1, (e.stdout or b"").decode(errors="replace") + f"\nended after {LIMIT} s\n"


def main():
    arguments = sys.argv[1:]
    waiting = programs(arguments)
    if not waiting:
        sys.exit("there are no test programs")
    notes = os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "test-times.json")
    try:
        with open(notes) as file:
            times = json.load(file)
    except (OSError, ValueError):
        times = {}
    usual = {name: len(SLOW) - i for i, name in enumerate(SLOW)}
    # The last one comes first.
    waiting.sort(key=lambda p: times.get(p[0], usual.get(p[0].split()[-1], 0)))
    total, failed, passed, lock = len(waiting), [], 0, threading.Lock()

    def work():
        nonlocal passed
        while True:
            with lock:
                if not waiting:
                    return
                name, program, folder = waiting.pop()
            start = time.monotonic()
            status, output = run(program, folder)
            took = time.monotonic() - start
            counts = [sum(map(int, re.findall(rf"^test result: .* (\d+) {word}", output, re.M))) for word in ("passed", "failed", "ignored")]
            with lock:
                times[name] = round(took, 2)
                passed += counts[0]
                left = f", {counts[2]} ignored" if counts[2] else ""
                if status != 0:
                    failed.append(name)
                    print(output, end="")
                print(f"{'FAIL' if status else 'ok  '}  {name:<28} {took:6.1f} s  {counts[0]} passed{left}", flush=True)

    workers = [threading.Thread(target=work) for _ in range(os.cpu_count() or 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.makedirs(os.path.dirname(notes), exist_ok=True)
    with open(notes, "w") as file:
        json.dump(times, file, indent=1, sort_keys=True)
    print(f"{passed} tests passed in {total - len(failed)} of {total} programs" + (f"; failed: {', '.join(sorted(failed))}" if failed else ""))
    sys.exit(1 if failed else 0)


main()
