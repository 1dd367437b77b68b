"""Writes the wheel of the Python package: its files, the runtime's library, and the compiler as the program `infc`.

    python3 wheel.py VERSION LIBRARY PROGRAM FOLDER

The tag of the platform is what the library and the program need: their architecture and the newest version of glibc that they name
(`readelf`). The same files give the same wheel.
"""

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import licences as of_others

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
MACHINES = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}
# What every manylinux system has (PEP 600): nothing else may be linked.
LIBRARIES = re.compile(r"(libc|libm|libgcc_s|libdl|libpthread|librt|ld-linux-[\w-]+)\.so\.\d+")
# The licences of what others have written of the library and the program.
OTHERS = "THIRD-PARTY.txt"
PYTHONS = [f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 14)]


def needs(file: Path) -> tuple:
    """The architecture and the version of glibc that a file is for."""

    def readelf(*options: str) -> str:
        return subprocess.run(["readelf", "-W", *options, file], check=True, capture_output=True, text=True).stdout

    linked = re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d"))
    foreign = [name for name in linked if not LIBRARIES.fullmatch(name)]
    if foreign:
        sys.exit(f"wheel.py: {file} needs {', '.join(foreign)}, which not every system has")
    machine = MACHINES[re.search(r"Machine: +(.*)", readelf("-h")).group(1).strip()]
    versions = re.findall(r"Name: GLIBC_(\d+)\.(\d+)", readelf("-V"))
    return machine, max((int(major), int(minor)) for major, minor in versions)


def platform(files: list) -> str:
    """The tag for all of these."""
    machines, versions = zip(*map(needs, files))
    if len(set(machines)) > 1:
        sys.exit(f"wheel.py: files for different machines: {', '.join(machines)}")
    major, minor = max(versions)
    return f"manylinux_{major}_{minor}_{machines[0]}"


def docstring() -> str:
    """What the package says of itself, as its description."""
    return (HERE / "infc" / "__init__.py").read_text().split('"""')[1].strip()


def metadata(version: str, licences: list) -> str:
    """The file METADATA."""
    title, text = docstring().split("\n", 1)
    lines = [
        "Metadata-Version: 2.4",
        "Name: infc",
        f"Version: {version}",
        "Summary: Compiles trained ONNX models to native code ahead of time, and runs them",
        "Description-Content-Type: text/markdown",
        "License-Expression: MIT OR Apache-2.0",
        *(f"License-File: {path.name}" for path in licences),
        f"License-File: {OTHERS}",
        "Requires-Python: >=3.9",
        "Requires-Dist: numpy>=1.21",
        "Provides-Extra: bfloat16",
        'Requires-Dist: ml_dtypes; extra == "bfloat16"',
        "Classifier: Operating System :: POSIX :: Linux",
        "Classifier: Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Classifier: {python}" for python in PYTHONS),
    ]
    return "\n".join(lines) + f"\n\n# {title}\n{text}\n"


def main(version: str, library: Path, program: Path, folder: Path) -> Path:
    """Writes the wheel; its path."""
    system = platform([library, program])
    tag = f"py3-none-{system}"
    others = of_others.third_party(f"{system.split('_', 3)[3]}-unknown-linux-gnu")
    info = f"infc-{version}.dist-info"
    licences = [ROOT / name for name in ("LICENSE", "LICENSE-APACHE", "LICENSE-MIT")]
    wheel = f"Wheel-Version: 1.0\nGenerator: infc wheel.py ({version})\nRoot-Is-Purelib: false\nTag: {tag}\n"
    package = sorted(p for p in (HERE / "infc").iterdir() if p.suffix == ".py" or p.name == "py.typed")
    # Name, bytes, whether it may be executed.
    files = [(f"infc/{p.name}", p.read_bytes(), False) for p in package]
    files += [
        ("infc/libinfc_runtime.so", library.read_bytes(), True),
        (f"infc-{version}.data/scripts/infc", program.read_bytes(), True),
        *((f"{info}/licenses/{p.name}", p.read_bytes(), False) for p in licences),
        (f"{info}/licenses/{OTHERS}", others.encode(), False),
        (f"{info}/METADATA", metadata(version, licences).encode(), False),
        (f"{info}/WHEEL", wheel.encode(), False),
    ]
    record = ""
    for name, data, _ in files:
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    files.append((f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode(), False))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"infc-{version}-{tag}.whl"
    unfinished = path.with_suffix(".tmp")
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data, executable in files:
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.external_attr = (0o100755 if executable else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    unfinished.rename(path)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    print(main(sys.argv[1], *map(Path, sys.argv[2:])))
