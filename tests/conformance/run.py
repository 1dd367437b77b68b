#!/usr/bin/env python3
"""Runs ONNX's suites and random cases through every backend and through the peers, and writes the page about it.

Usage: run.py INFC FOLDER PAGE.md      (onnx, onnxruntime and what they need are installed)

FOLDER holds `onnx-VERSION/SUITE/TEST/...` and `random/CASE/...` in ONNX's test layout, and gets `conformance.json`. Every test that infc does not
pass must have a reason: in `gaps-BACKEND.txt` by its name (node tests), or in `gaps-more-BACKEND.txt` by `SUITE/TEST` or
`VERSION/SUITE/TEST`. A test without a reason is an error, and so is a line of `gaps-more` that is of no use.
"""
import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
VERSIONS = ("1.23.2", "1.22.0", "1.16.2")
SUITES = ("node", "simple", "pytorch-operator", "pytorch-converted", "light")
# Lists of gaps of backends that have none of their own.
LISTS = {"passes": "interp", "loops": "llvm", "cranelift": "llvm", "ptx": "llvm", "c99-vector": "c"}
# Links inside of the chain, which nobody runs by themselves: the newest node tests are enough.
LINKS = ("passes", "loops")
# Other machines of a backend: name to backend. Theirs are the newest node tests, too.
MACHINES = {"c99-vector": "c"}
# The interpreters of loops and of PTX check every access; they take what they do in reasonable time.
MOST_MFLOP = {"loops": "50", "ptx": "50"}
PEERS = {"reference": "ONNX reference evaluator", "onnxruntime": "ONNX Runtime"}


class Gaps:
    """Reasons of a backend, and which of them were of use."""

    def __init__(self, backend):
        self.backend = backend
        self.own = self.read(f"gaps-{backend}.txt") or self.read(f"gaps-{LISTS.get(backend, backend)}.txt")
        self.more = self.read(f"gaps-more-{backend}.txt")
        self.strict = bool(self.more)
        self.more = self.more or self.read(f"gaps-more-{LISTS.get(backend, backend)}.txt")
        self.used = set()

    @staticmethod
    def read(name):
        file = HERE / name
        lines = file.read_text().splitlines() if file.exists() else []
        return dict(line.split(": ", 1) for line in lines if line.strip() and not line.startswith("#"))

    def reason(self, version, suite, name):
        for key in (f"{version}/{suite}/{name}", f"{suite}/{name}"):
            if key in self.more:
                self.used.add(key)
                return self.more[key]
        return self.own.get(name) if suite == "node" else None

    def useless(self):
        return sorted(set(self.more) - self.used) if self.strict else []


def verify(infc, folder, backend, kept):
    """What infc finds: name to (passed, message, has host steps); names of tests that were too large. The answer is kept in a file: a run that was
    broken off goes on where it was, as long as neither infc nor the tests have changed."""
    newest = max(Path(infc).stat().st_mtime, folder.stat().st_mtime)
    if not kept.exists() or kept.stat().st_mtime < newest:
        limit = ["--max-mflop", MOST_MFLOP[backend]] if backend in MOST_MFLOP else []
        engine = ["--backend", MACHINES[backend], "--target", backend] if backend in MACHINES else ["--backend", backend]
        command = [infc, "verify", folder, *engine, "--strict", "--json", "--jobs", str(os.cpu_count()), *limit]
        made = subprocess.run(command, capture_output=True, text=True)
        try:
            models = json.loads(made.stdout)["models"]
        except (json.JSONDecodeError, KeyError):
            sys.exit(f"infc verify {folder} --backend {backend}: {made.stderr.strip()}")
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(models))
    models = json.loads(kept.read_text())
    done = {m["name"]: (m["status"] == "passed", m["message"], bool(m.get("host"))) for m in models if m["status"] != "too_large"}
    return done, [m["name"] for m in models if m["status"] == "too_large"]


def suites(root):
    """Folders of tests with version and suite. All but the node tests are the same files in every version of the package."""
    for version in VERSIONS:
        for suite in SUITES if version == VERSIONS[0] else SUITES[:1]:
            yield version, suite, root / f"onnx-{version}" / suite
    yield "random", "cases", root / "random"


def ours(infc, root, backends, failures):
    """Results of the backends, a row a version, suite and test."""
    rows = []
    for backend in backends:
        gaps = Gaps(backend)
        for version, suite, folder in suites(root):
            if (backend in LINKS or backend in MACHINES) and (version, suite) != (VERSIONS[0], "node"):
                continue
            print(f"infc {backend}: {version} {suite}", flush=True)
            done, large = verify(infc, folder, backend, root / "done" / f"{backend}-{version}-{suite}.json")
            for name, (passed, message, host) in done.items():
                reason = None if passed else gaps.reason(version, suite, name)
                if not passed and reason is None:
                    failures.append(f"{backend}: {version}/{suite}/{name} has no reason: {message}")
                rows.append(dict(engine=f"infc {backend}", version=version, suite=suite, name=name, passed=passed, host=host, reason=reason or message))
            rows += [dict(engine=f"infc {backend}", version=version, suite=suite, name=name, passed=None, host=False, reason="too large for this interpreter") for name in large]
        failures += [f"gaps-more-{backend}.txt: '{key}' is no gap any more" for key in gaps.useless()]
    return rows


def theirs(root):
    """Results of the peers, in the same form."""
    rows = []
    for peer in PEERS:
        out = root / f"{peer}.json"
        folders = [folder for _, _, folder in suites(root)]
        # Their answers change with the suites, the cases and the packages only.
        newest = max(p.stat().st_mtime for p in [*folders, HERE / "peers.py", Path(sys.prefix) / "lib"])
        if not out.exists() or out.stat().st_mtime < newest:
            subprocess.run([sys.executable, HERE / "peers.py", peer, out, *map(str, folders)], check=True)
        for r in json.loads(out.read_text()):
            folder = Path(r["folder"]).parent
            version, suite = ("random", "cases") if folder.name == "random" else (folder.parent.name.removeprefix("onnx-"), folder.name)
            rows.append(dict(engine=peer, version=version, suite=suite, name=r["name"], passed=r["fault"] is None, host=None, reason=r["fault"], refused=r["refused"]))
    return rows


def table(head, rows):
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def plain(text):
    """A message as a cell of a table or an item of a list."""
    line = (text or "").strip().splitlines()[0] if (text or "").strip() else "no message"
    line = re.sub(r"/\S*/onnxruntime/", "", line)
    return line.replace("|", "/")[:160]


def counts(rows, engines):
    """Passed of all, a row a version and suite."""
    groups = collections.defaultdict(lambda: [0, 0])
    for r in rows:
        if r["passed"] is not None:
            group = groups[r["version"], r["suite"], r["engine"]]
            group[0] += r["passed"]
            group[1] += 1
    for version in VERSIONS:
        for suite in SUITES if version == VERSIONS[0] else SUITES[:1]:
            total = max(groups[version, suite, e][1] for e in engines)
            cell = lambda e: "" if groups[version, suite, e][1] == 0 else f"{groups[version, suite, e][0]}" + ("" if groups[version, suite, e][1] == total else f" of {groups[version, suite, e][1]}")
            yield [version, suite, total, *map(cell, engines)]


def page(rows, backends, versions):
    engines = [f"infc {b}" for b in backends] + list(PEERS)
    yield "# Conformance"
    yield ""
    yield "Written by `./x conformance`: ONNX's own suites, run by every backend of infc and by its peers with one rule: dtype and shape exact, NaN meets"
    yield "NaN, `|got - want| <= atol + rtol |want|` with the suite's own tolerances (`docs/testing.md`). All results, test by test, are in"
    yield f"`target/conformance/conformance.json`. {versions}"
    yield ""
    yield "## Tests that pass"
    yield ""
    head = ["onnx", "suite", "tests", *[e if e not in PEERS else PEERS[e] for e in engines]]
    yield from table(head, counts(rows, engines))
    yield ""
    yield "All suites but the node tests are the same files in the three versions. `light` is nine networks with made-up weights. Where fewer tests were run than there are, the rest takes too long for"
    yield "an interpreter. The links inside of the chain (`passes`, `loops`) and other machines (`c99-vector`) run the newest node tests only. Compiled code with no step on the host:"
    yield ""
    native = []
    for b in backends:
        if b in ("interp", "passes"):
            continue
        node = [r for r in rows if (r["engine"], r["version"], r["suite"]) == (f"infc {b}", VERSIONS[0], "node")]
        passed = [r for r in node if r["passed"]]
        native.append([b, len(node), len(passed), sum(not r["host"] for r in passed)])
    yield from table(["backend", "node tests", "pass", "with no host step"], native)
    yield ""
    yield "## Random cases"
    yield ""
    yield "Cases of every operator that runs natively (`crates/infc/tests/ops`): random shapes, dtypes and attributes, edges and NaN. Expected is what"
    yield "the graph interpreter computes; an engine agrees, gives something else, or does not take the model."
    yield ""
    random = []
    for e in engines:
        own = [r for r in rows if r["engine"] == e and r["version"] == "random" and r["passed"] is not None]
        if not own:
            continue
        refused = sum(bool(r.get("refused")) for r in own)
        passed = sum(r["passed"] for r in own)
        random.append([PEERS.get(e, e), len(own), passed, len(own) - passed - refused, refused])
    yield from table(["engine", "cases", "agree", "differ", "not taken"], random)
    yield ""
    differ = collections.defaultdict(collections.Counter)
    for r in rows:
        if r["version"] == "random" and r["passed"] is False and not r.get("refused"):
            differ[PEERS.get(r["engine"], r["engine"])][r["name"].split("_")[1]] += 1
    for engine, operators in differ.items():
        yield f"{engine} gives something else for " + ", ".join(f"{o} ({n})" for o, n in sorted(operators.items())) + "."
        yield ""
    yield "## What does not pass"
    yield ""
    for b in backends:
        reasons = collections.defaultdict(set)
        for r in rows:
            if r["engine"] == f"infc {b}" and r["passed"] is False and r["version"] != "random":
                reasons[plain(r["reason"])].add(f"{r['version']} {r['name']}" if r["version"] != VERSIONS[0] else r["name"])
        yield f"### infc {b}"
        yield ""
        for reason, names in sorted(reasons.items(), key=lambda i: (-len(i[1]), i[0])):
            yield f"- {reason} ({len(names)}): {', '.join(sorted(names))}"
        yield "" if reasons else "Nothing.\n"
    for peer, name in PEERS.items():
        reasons = collections.Counter(re.sub(r"[\d.]+", "N", plain(r["reason"])[:70]) for r in rows if r["engine"] == peer and r["passed"] is False and r["version"] == VERSIONS[0])
        yield f"### {name} (onnx {VERSIONS[0]}, by first words of the message)"
        yield ""
        for reason, n in reasons.most_common(12):
            yield f"- {n}: {reason}"
        rest = sum(n for _, n in reasons.most_common()[12:])
        yield f"- {rest}: others\n" if rest else ""


def main(infc, root, out):
    import onnx
    import onnxruntime

    backends = subprocess.run([infc, "targets", "--backends"], capture_output=True, text=True, check=True).stdout.split()
    backends += [machine for machine, backend in MACHINES.items() if backend in backends]
    failures = []
    rows = ours(infc, root, backends, failures) + theirs(root)
    (root / "conformance.json").write_text(json.dumps(rows, indent=0))
    versions = f"Peers: onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}."
    out.write_text("\n".join(page(rows, backends, versions)).rstrip() + "\n")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
