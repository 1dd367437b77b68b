"""The licences of other people's code in the compiler and the runtime, as one text: every crate with its licence and the texts that it comes with.

A crate whose licence is not among those that this project takes is an error.
"""

import json
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ["infc", "infc-runtime"]
TAKEN = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-0",
    "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip
FILES = re.compile(r"(?i)(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?")
RULE = "=" * 100


def crates(platform: str) -> list:
    """What cargo knows of each crate that goes into the programs on a platform, but for those of this project."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", platform]
    known = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)
    packages = {p["id"]: p for p in known["packages"]}
    nodes = {n["id"]: n for n in known["resolve"]["nodes"]}
    own = set(known["workspace_members"])
    left = [i for i in own if packages[i]["name"] in PROGRAMS]
    seen = set(left)
    while left:
        for dep in nodes[left.pop()]["deps"]:
            linked = any(kind["kind"] is None for kind in dep["dep_kinds"])
            if linked and dep["pkg"] not in seen:
                seen.add(dep["pkg"])
                left.append(dep["pkg"])
    return sorted((packages[i] for i in seen - own), key=lambda p: (p["name"], p["version"]))


def taken(expression: str) -> bool:
    """Whether a licence expression of SPDX lets this project take the code: of alternatives one, of what holds together all."""
    words = re.findall(r"[()]|[^\s()/]+|/", expression)

    def either(at: int) -> tuple:
        good, at = both(at)
        while at < len(words) and words[at] in ("OR", "/"):
            other, at = both(at + 1)
            good = good or other
        return good, at

    def both(at: int) -> tuple:
        good, at = one(at)
        while at < len(words) and words[at] == "AND":
            other, at = one(at + 1)
            good = good and other
        return good, at

    def one(at: int) -> tuple:
        if words[at] == "(":
            good, at = either(at + 1)
            return good, at + 1
        if words[at + 1 : at + 2] == ["WITH"]:
            return f"{words[at]} WITH {words[at + 2]}" in TAKEN, at + 3
        return words[at] in TAKEN, at + 1

    return bool(words) and either(0)[0]


def texts(crate: dict) -> list:
    """The files of a crate that tell its licence, by name."""
    folder = Path(crate["manifest_path"]).parent
    named = [folder / crate["license_file"]] if crate["license_file"] else []
    found = sorted(p for p in folder.iterdir() if p.is_file() and FILES.fullmatch(p.name))
    return [p.read_text(errors="replace").strip() for p in dict.fromkeys(named + found) if p.is_file()]


def third_party(platform: str) -> str:
    """The whole text. Each text stands once, below the crates that it is of."""
    all_crates = crates(platform)
    wrong = [f"{c['name']} {c['version']}: {c['license']}" for c in all_crates if not taken(c["license"] or "")]
    if wrong:
        raise SystemExit(f"licences.py: crates with licences that are not taken here: {'; '.join(wrong)}")
    groups: dict = {}
    lines = [
        "Parts of infc and of its runtime are the crates of others, under their licences. Below are the texts that they come with;",
        "a crate without one is under the licence that its line names, as the other crates of that project are.",
        "",
    ]
    width = max(len(f"{c['name']} {c['version']}") for c in all_crates)
    for crate in all_crates:
        name = f"{crate['name']} {crate['version']}"
        lines.append(f"{name:<{width}}  {crate['license']}")
        for text in texts(crate):
            groups.setdefault(text, []).append(name)
    for text, names in groups.items():
        lines += ["", RULE, ", ".join(names), RULE, "", text]
    return "\n".join(lines) + "\n"
