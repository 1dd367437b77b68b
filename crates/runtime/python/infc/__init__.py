"""infc from Python: compile trained ONNX models to native code, and run them.

    import infc
    infc.compile("model.onnx", "model.infc", dims={"batch": 1})   # once: machine code, packed weights, a list of steps
    model = infc.Model("model.infc")                              # maps the file
    print(model)                                                  # names, types and dims of inputs and outputs
    session = model.session(threads=2)
    scores = session.run({"input": pixels})["scores"]             # numpy arrays in and out

`infc.load` does both for a `.onnx` file. `infc.ort` has the part of onnxruntime's interface that such programs use most.

Arrays have to have the dtype of the input: nothing is cast. Outputs are copies; `session.run(feeds, copy=False)` and `session.input_memory` work in
the session's memory, and say for how long. A model may be used by any number of threads and sessions; the calls of one session take turns.
Threads of a session do not survive `os.fork`: make sessions in the process that runs them.

What goes wrong is an `infc.Error` with a `status` (`infc.Status`), or an `infc.CompileError` with the compiler's text.

The package is Python alone over the runtime's C interface. Its library lies beside it, or INFC_RUNTIME names it; the compiler is the
program `infc` that came with the package, unless INFC names another one; without either, the one on PATH. The compiler needs LLVM's
library for the targets that use it (version 19 to 22: `libllvm19` or `libllvm22` of Debian and Ubuntu, or what INFC_LLVM names), and nothing
for those whose names begin with `cranelift-`:
`infc.compile(model, target="cranelift-x86-64-v3")`. To run what was compiled takes neither.
"""

from __future__ import annotations

from typing import Any

from ._compile import CompileError, compile, compiler, load
from ._library import Error, Status
from ._session import Memory, Model, Port, Session

__all__ = [
    "CompileError", "Error", "InferenceSession", "Memory", "Model", "Port", "Session", "Status", "compile", "compiler", "load",
]  # fmt: skip

# Names as users know them, in messages.
for public in (CompileError, Error, Memory, Model, Port, Session, Status):
    public.__module__ = "infc"
del public


def __getattr__(name: str) -> Any:
    # What costs time at import, and that most programs do not ask for.
    if name == "InferenceSession":
        from .ort import InferenceSession

        return InferenceSession
    if name == "__version__":
        from ._library import library, text

        return text(library().infc_version())
    raise AttributeError(f"module 'infc' has no {name}")
