"""A part of onnxruntime's interface, so that a program can change one line: `import infc.ort as onnxruntime`.

    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    scores, = session.run(None, {"input": pixels})

There are `InferenceSession` with `run`, `get_inputs`, `get_outputs`, `get_providers`, and `SessionOptions` with the number of threads. All else is
an error, never ignored. Execution providers: infc runs models on the CPU, so `providers` may be None or name "CPUExecutionProvider" alone.
A list with others is an error too, although onnxruntime would take the next one that it has.

An ONNX model is compiled each time that a session is made (`infc.load`); give a path of an artifact (`infc.compile`) to do so once. Runs of one session
from several threads take turns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._compile import load
from ._library import Error, Status
from ._session import Model, Port

_TYPES = {"float32": "float", "float64": "double"}
_CPU = "CPUExecutionProvider"


class SessionOptions:
    """Options of a session: how many threads it has."""

    intra_op_num_threads: int
    """Threads that share the work of an operator; 0, as usual, is one for each CPU."""
    inter_op_num_threads: int
    """Operators run one after the other: 0 and 1 are the same, more is an error."""

    def __init__(self) -> None:
        self.intra_op_num_threads = 0
        self.inter_op_num_threads = 0

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("intra_op_num_threads", "inter_op_num_threads"):
            raise NotImplementedError(f"infc has no session option {name}")
        if not isinstance(value, int) or value < 0 or (name == "inter_op_num_threads" and value > 1):
            raise NotImplementedError(f"infc has no session with {name} = {value!r}")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"infc has no session option {name}")


class NodeArg:
    """An input or output: name, type and shape."""

    def __init__(self, port: Port) -> None:
        self.name: str = port.name
        self.type: str = f"tensor({_TYPES.get(port.dtype.name, port.dtype.name)})"
        """As onnxruntime writes it: 'tensor(float)'."""
        self.shape: list[int | str] = list(port.dims)
        """Sizes, and text where a size is known only at run time, also where the model has no name for it."""

    def __repr__(self) -> str:
        return f"NodeArg(name={self.name!r}, type={self.type!r}, shape={self.shape!r})"


class InferenceSession:
    """A model that is ready to run, in onnxruntime's words. `options` are those of `infc.compile`, for a model that is ONNX."""

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        sess_options: SessionOptions | None = None,
        providers: Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        for provider in providers or ():
            name, chosen = provider if isinstance(provider, tuple) else (provider, None)
            if name != _CPU or chosen:
                raise NotImplementedError(f"infc has no execution provider {provider!r}: it runs models on the CPU, as {_CPU!r}")
        if sess_options is not None and not isinstance(sess_options, SessionOptions):
            raise TypeError(f"sess_options has to be infc.ort.SessionOptions, not {type(sess_options)}")
        self._model: Model = load(path_or_bytes, **options)
        self._session = self._model.session(threads=(sess_options or SessionOptions()).intra_op_num_threads)
        self._required = [port.name for port in self._model.inputs if port.state is None]

    def get_inputs(self) -> list[NodeArg]:
        """The inputs of the model."""
        return [NodeArg(port) for port in self._model.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs of the model."""
        return [NodeArg(port) for port in self._model.outputs]

    def get_providers(self) -> list[str]:
        """What runs the model."""
        return [_CPU]

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: None = None) -> list[np.ndarray]:
        """Runs the model; the outputs of these names, or all of them. Every input has to be given, but for those with state."""
        if run_options is not None:
            raise NotImplementedError("infc has no run_options")
        missing = [name for name in self._required if name not in input_feed]
        if missing:
            raise Error(Status.INPUT, f"inputs are missing: {', '.join(missing)}")
        # An empty list means all outputs there too.
        names = list(output_names) if output_names else None
        outputs = self._session.run(input_feed, names)
        return [outputs[name] for name in names or outputs]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"infc.ort.InferenceSession has no {name}: it is a part of onnxruntime's")

    def __repr__(self) -> str:
        return f"<infc.ort.InferenceSession of {self._model!r}>"


def __getattr__(name: str) -> Any:
    raise AttributeError(f"infc.ort has no {name}: it is a part of onnxruntime's interface")
