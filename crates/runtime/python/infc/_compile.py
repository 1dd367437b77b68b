"""The compiler: runs the program `infc`, and opens what it made.

Functions import what they need themselves: a program that only runs artifacts does not pay for it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Union

from ._library import Error
from ._session import Model

# The environment names another compiler than the one that came with the package.
VARIABLE = "INFC"
_MAGIC = b"\x89INFC\r\n\n"

Path = Union[str, "os.PathLike[str]"]
Bytes = (bytes, bytearray, memoryview)


class CompileError(Error):
    """What the compiler says of a model, file or option that it refuses. `status` is None."""

    def __init__(self, text: str) -> None:
        super().__init__(None, text)

    def __reduce__(self) -> Any:
        return type(self), (str(self),)


def _installed() -> list[str]:
    """Where installing the package put its program."""
    import importlib.metadata as metadata

    package = os.path.dirname(os.path.abspath(__file__))
    try:
        distribution = metadata.distribution("infc")
    except metadata.PackageNotFoundError:
        return []
    if os.path.realpath(str(distribution.locate_file("infc"))) != os.path.realpath(package):
        return []  # another infc than this one
    listed = [str(distribution.locate_file(f)) for f in distribution.files or [] if f.parts[-2:] == ("bin", "infc")]
    # `pip install --target` moves programs, and its list does not say so.
    return [os.path.normpath(f) for f in [*listed, os.path.join(os.path.dirname(package), "bin", "infc")]]


def compiler() -> str:
    """The program that `compile` runs: INFC in the environment, else the one of this package, else the one on PATH."""
    told = os.environ.get(VARIABLE)
    for path in [told] if told else _installed():
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    if told:
        raise CompileError(f"the environment says {VARIABLE}={told}, which is no program")
    import shutil

    found = shutil.which("infc")
    if found is None:
        raise CompileError(f"no compiler: the program infc is neither in this package nor on PATH, and {VARIABLE} names none")
    return found


def compile(
    model: Path | bytes,
    output: Path | None = None,
    *,
    target: str | None = None,
    dims: Mapping[str, int] | None = None,
    threads: int | None = None,
    math: str | None = None,
    args: Sequence[str | os.PathLike[str]] = (),
) -> str:
    """Compiles an ONNX model, a file or the bytes of one, and returns the path of the artifact.

    Without `output`, it is in the current folder and has the model's name. `target` names the machine (`infc targets`; this computer if it
    is None), `dims` gives values to symbolic dims, `threads` is how many sessions are to use unless told, `math` as for `--math`. `args` are
    further arguments of `infc compile`: `args=["--state", "OUT=IN"]`. What the compiler refuses is a `CompileError`.
    """
    import subprocess
    import tempfile

    if isinstance(model, Bytes):
        if output is None:
            raise ValueError("a model that is bytes has no name: say where the output goes")
        with tempfile.TemporaryDirectory(prefix="infc-") as folder:
            path = os.path.join(folder, "model.onnx")
            with open(path, "wb") as file:
                file.write(model)
            return compile(path, output, target=target, dims=dims, threads=threads, math=math, args=args)
    source = os.fsdecode(model)
    further = [os.fsdecode(argument) for argument in args]
    if output is None:
        if any(argument.split("=")[0] == "--emit" for argument in further):
            raise ValueError("what --emit makes has no name of its own: say where the output goes")
        output = os.path.splitext(os.path.basename(source))[0] + ".infc"
    result = os.fsdecode(output)
    options = [f"--output={result}"]
    options += [f"--dim={name}={size}" for name, size in (dims or {}).items()]
    named = {"target": target, "threads": threads, "math": math}
    options += [f"--{name}={value}" for name, value in named.items() if value is not None]
    run = subprocess.run([compiler(), "compile", *options, *further, "--", source], capture_output=True, text=True, errors="replace")
    if run.returncode != 0:
        said = (run.stderr or run.stdout).strip()
        raise CompileError(said.removeprefix("error: "))
    if run.stderr.strip():
        warnings.warn(run.stderr.strip(), stacklevel=2)
    return result


def load(model: Path | bytes, variant: str | None = None, **options: Any) -> Model:
    """Opens an artifact (`.infc`, or bytes of one), or compiles an ONNX model (`.onnx`, or bytes of one) and opens the result.

    What is compiled goes to a temporary file (`TMPDIR`), which is deleted once it is open: nothing is kept between processes. Keep the
    result of `compile` to compile once. `options` are those of `compile`; with an artifact they are an error.
    """
    if isinstance(model, Bytes):
        artifact = bytes(model[: len(_MAGIC)]) == _MAGIC
    else:
        ending = os.path.splitext(os.fsdecode(model))[1]
        if ending not in (".infc", ".onnx"):
            raise ValueError(f"'{os.fsdecode(model)}' ends with neither .infc nor .onnx")
        artifact = ending == ".infc"
    if artifact:
        if options:
            raise ValueError(f"an artifact is compiled already: {', '.join(options)} cannot be chosen any more")
        return Model(model, variant)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="infc-") as folder:
        opened = Model(compile(model, os.path.join(folder, "model.infc"), **options), variant)
    opened.path = None if isinstance(model, Bytes) else os.fsdecode(model)
    return opened
