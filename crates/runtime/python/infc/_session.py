"""Models and sessions: the runtime with numpy arrays."""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from ctypes import addressof, byref, c_int64, c_size_t, c_uint64, c_void_p, sizeof
from typing import Any, NamedTuple

import numpy as np

from ._library import THREADS_OF_ARTIFACT, Error, Handle, Options, Status, Tensor, failed, library, text

# Element types by their numbers in ONNX; bfloat16 is the one that numpy lacks.
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
_BF16 = 16


class Port(NamedTuple):
    """An input or output of a model."""

    name: str
    dtype: np.dtype
    """The type of its elements."""
    dims: tuple[int | str, ...]
    """Sizes; text where a size is known only at run time: 'batch', '2 * n'."""
    state: str | None = None
    """Of an output: the input that takes its value in the next run. Of an input: that output."""

    def __str__(self) -> str:
        state = f" (state: {self.state})" if self.state is not None else ""
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]{state}"


class Memory(NamedTuple):
    """Bytes in use."""

    session: int
    """Held by the session: values inside of the model, inputs, outputs."""
    constants: int
    """Those of the model, which all its sessions share."""


def _dtype(number: int, name: str) -> np.dtype:
    if number in _DTYPES:
        return np.dtype(_DTYPES[number])
    if number == _BF16:
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise Error(Status.USAGE, f"'{name}' is bfloat16, which numpy lacks: install the package ml_dtypes") from None
        dtype: np.dtype = np.dtype(bfloat16)
        return dtype
    raise Error(Status.USAGE, f"'{name}' has element type {number} of ONNX, which this package does not know")


def _ports(model: int | None, kind: str) -> list[tuple[int, Port]]:
    """Ports of a kind, with the number of their element type."""
    lib = library()

    def ask(question: str, *arguments: int) -> Any:
        return getattr(lib, f"infc_{kind}_{question}")(model, *arguments)

    ports = []
    for i in range(ask("count")):
        name, number, sizes = text(ask("name", i)), ask("dtype", i), range(ask("rank", i))
        fixed = [(ask("dim", i, axis), text(ask("dim_text", i, axis))) for axis in sizes]
        dims = tuple(size if size >= 0 else symbol for size, symbol in fixed)
        ports.append((number, Port(name, _dtype(number, name), dims)))
    return ports


def _text(value: str | bytes) -> bytes:
    """Text for C."""
    data = os.fsencode(value)
    if b"\0" in data:
        raise ValueError(f"{value!r} has a zero byte in it")
    return data


class Model:
    """A compiled model: a file, which is mapped and must not be changed while it is open, or the bytes of one.

    Of several variants in the artifact the best one that this machine can run is taken, or the one that is named. A model may be used by
    any number of sessions and threads.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes | bytearray | memoryview, variant: str | None = None) -> None:
        lib = library()
        chosen = None if variant is None else _text(variant)
        if isinstance(model, (bytes, bytearray, memoryview)):
            data = np.frombuffer(model, np.uint8)
            self.path: str | None = None
            """The file; None for bytes."""
            self._handle: Handle | None = Handle(lib.infc_model_load_variant, lib.infc_model_close, data.ctypes.data, data.nbytes, chosen)
        else:
            self.path = os.fsdecode(model)
            self._handle = Handle(lib.infc_model_open_variant, lib.infc_model_close, _text(os.fsdecode(model)), chosen)
        pointer = self._handle.pointer
        self.variant: str = text(lib.infc_model_variant(pointer))
        inputs, outputs = _ports(pointer, "input"), _ports(pointer, "output")
        for i in range(len(outputs)):
            fed = lib.infc_output_state(pointer, i)
            if fed >= 0:
                ((a, source), (b, target)) = (outputs[i], inputs[fed])
                outputs[i] = a, source._replace(state=target.name)
                inputs[fed] = b, target._replace(state=source.name)
        self._numbers = [number for number, _ in inputs]
        self.inputs: tuple[Port, ...] = tuple(port for _, port in inputs)
        self.outputs: tuple[Port, ...] = tuple(port for _, port in outputs)

    def session(self, threads: int | None = None, spin_us: int = 1000) -> Session:
        """A session on this many threads: 0 is one for each CPU, None what the artifact was compiled for.

        Results are the same bits for any number. Threads wait busily for `spin_us` microseconds within a run before they sleep.
        """
        return Session(self, threads, spin_us)

    def close(self) -> None:
        """Closes the model; sessions that use it go on."""
        self._handle = None

    def _pointer(self) -> int | None:
        if self._handle is None:
            raise Error(Status.USAGE, "the model is closed")
        return self._handle.pointer

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        of = f" {self.path!r}" if self.path is not None else ""
        ports = [f"  input  {port}" for port in self.inputs] + [f"  output {port}" for port in self.outputs]
        return "\n".join([f"<infc.Model{of} for {self.variant}", *ports]) + ">"


class _Memory:
    """Memory of a session for numpy: arrays over it have this as their base, so that the session's memory outlives them."""

    __slots__ = ("__array_interface__", "handle")

    def __init__(self, handle: Handle, data: int, bytes: int, writable: bool) -> None:
        self.handle = handle
        self.__array_interface__ = {"data": (data, not writable), "shape": (bytes,), "typestr": "|u1", "version": 3}


def _array(handle: Handle, data: int, bytes: int, port: Port, shape: tuple[int, ...], writable: bool) -> np.ndarray:
    if bytes == 0:
        return np.empty(shape, port.dtype)
    return np.asarray(_Memory(handle, data, bytes, writable)).view(port.dtype).reshape(shape)


class _Input:
    """An input of a session, with the dims of the last call as C has them."""

    __slots__ = ("_sizes", "code", "dims", "dtype", "number", "port", "rank", "shape")

    def __init__(self, number: int, code: int, port: Port) -> None:
        self.number, self.code, self.port, self.dtype = number, code, port, port.dtype
        self.bind((0,) * len(port.dims))

    def bind(self, shape: tuple[int, ...]) -> None:
        self._sizes = (c_int64 * len(shape))(*shape)
        self.dims, self.rank, self.shape = addressof(self._sizes), len(shape), shape


class _Output:
    """An output of a session, with an array over the memory where it was after the last run."""

    __slots__ = ("address", "array", "data", "number", "port", "tensor")

    def __init__(self, number: int, port: Port) -> None:
        self.number, self.port, self.tensor = number, port, Tensor()
        self.address = addressof(self.tensor)
        self.data: int | None = None
        self.array: np.ndarray | None = None


class Session:
    """Memory and threads to run a model. Made by `Model.session`; it keeps what it needs of the model.

    Calls from several Python threads take turns; for runs side by side, make a session for each thread.
    """

    def __init__(self, model: Model, threads: int | None = None, spin_us: int = 1000) -> None:
        lib = library()
        for name, value in (("threads", threads), ("spin_us", spin_us)):
            if value is not None and not 0 <= value < THREADS_OF_ARTIFACT:
                raise Error(Status.USAGE, f"{name} is {value}, which is no number from 0 on")
        chosen = THREADS_OF_ARTIFACT if threads is None else threads
        options = Options(sizeof(Options), chosen, spin_us)
        self._handle: Handle | None = Handle(lib.infc_session_create, lib.infc_session_destroy, model._pointer(), byref(options))
        self.model = model
        self._lock = threading.Lock()
        self._inputs = {p.name: _Input(i, model._numbers[i], p) for i, p in enumerate(model.inputs)}
        self._outputs = {p.name: _Output(i, p) for i, p in enumerate(model.outputs)}
        self._all = tuple(self._outputs.values())
        self._set_input, self._run, self._get_output = lib.infc_set_input, lib.infc_run, lib.infc_get_output

    def run(
        self, feeds: Mapping[str, Any] | None = None, outputs: Iterable[str] | None = None, *, copy: bool = True
    ) -> dict[str, np.ndarray]:
        """Sets inputs, runs the model, and gives its outputs (or those that are named).

        An input that is left out keeps the value it has: that of the last run that set it, what was written to `input_memory`, or, for one
        with state, what the last run gave (zeros at first). Values are arrays, or what numpy makes arrays of; the dtype must be the
        input's, since nothing is cast.

        With `copy=False`, outputs are read-only arrays over the session's memory. They hold until the next call that runs, resets, or sets
        an input: after it they may show other values, or memory that was freed. Closing the session, or dropping it, does them no harm.
        """
        with self._lock:
            handle = self._open()
            pointer = handle.pointer
            if feeds:
                inputs = self._inputs
                for name, value in feeds.items():
                    slot = inputs.get(name)
                    if slot is None:
                        raise self._missing(Status.INPUT, "input", name, inputs)
                    if type(value) is not np.ndarray:
                        value = np.asarray(value)
                    if value.dtype != slot.dtype:
                        raise _wrong_dtype(slot.port, value)
                    if not value.flags.c_contiguous:
                        value = value.copy("C")
                    if value.shape != slot.shape:
                        slot.bind(value.shape)
                    status = self._set_input(pointer, slot.number, slot.code, slot.dims, slot.rank, value.ctypes.data, value.nbytes)
                    if status:
                        raise failed(status)
            status = self._run(pointer)
            if status:
                raise failed(status)
            wanted = self._all if outputs is None else self._named(outputs)
            return {slot.port.name: self._output(handle, slot, copy) for slot in wanted}

    def input_memory(self, name: str, dims: Sequence[int]) -> np.ndarray:
        """The session's memory for an input of these dims, as an array to be written in place instead of giving the input to `run`.

        It stays the input's, also for further runs, until the input is set or its memory is asked for again, or, for an input with state,
        until the next run. Its first values are whatever the memory holds.
        """
        with self._lock:
            handle, slot = self._open(), self._inputs.get(name)
            if slot is None:
                raise self._missing(Status.INPUT, "input", name, self._inputs)
            shape = tuple(map(operator.index, dims))
            if any(not 0 <= size < 2**63 for size in shape):
                raise Error(Status.INPUT, f"input '{name}': {list(shape)} is no shape")
            slot.bind(shape)
            data, bytes = c_void_p(), c_size_t()
            status = library().infc_input_memory(handle.pointer, slot.number, slot.dims, slot.rank, byref(data), byref(bytes))
            if status:
                raise failed(status)
            return _array(handle, data.value or 0, bytes.value, slot.port, slot.shape, True)

    def reset(self) -> None:
        """Forgets state: the next run starts from zeros, or from what is set."""
        with self._lock:
            status = library().infc_reset(self._open().pointer)
            if status:
                raise failed(status)

    def memory(self) -> Memory:
        """Bytes that are in use."""
        with self._lock:
            session, constants = c_uint64(), c_uint64()
            status = library().infc_memory(self._open().pointer, byref(session), byref(constants))
            if status:
                raise failed(status)
            return Memory(session.value, constants.value)

    def close(self) -> None:
        """Ends the session. Its memory is given back when no array over it is left."""
        with self._lock:
            self._handle = None
            for slot in self._all:
                slot.array = None

    def _open(self) -> Handle:
        if self._handle is None:
            raise Error(Status.USAGE, "the session is closed")
        return self._handle

    def _output(self, handle: Handle, slot: _Output, copy: bool) -> np.ndarray:
        status = self._get_output(handle.pointer, slot.number, slot.address)
        if status:
            raise failed(status)
        tensor, array = slot.tensor, slot.array
        shape = tuple(tensor.dims[: tensor.rank])
        data = tensor.data
        if array is None or array.shape != shape or slot.data != data:
            array = _array(handle, data or 0, tensor.bytes, slot.port, shape, False)
            slot.array, slot.data = array, data
        result: np.ndarray = array.copy() if copy else array.view()
        return result

    def _named(self, outputs: Iterable[str]) -> tuple[_Output, ...]:
        slots = []
        for name in outputs:
            if name not in self._outputs:
                raise self._missing(Status.OUTPUT, "output", name, self._outputs)
            slots.append(self._outputs[name])
        return tuple(slots)

    @staticmethod
    def _missing(status: Status, kind: str, name: str, known: Iterable[str]) -> Error:
        # The runtime's words for the same mistake.
        names = ", ".join(f"'{known_name}'" for known_name in known)
        return Error(status, f"there is no {kind} {name!r}; the model has {names}")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else "open"
        return f"<infc.Session, {state}, of {self.model!r}>"


def _wrong_dtype(port: Port, value: np.ndarray) -> Error:
    return Error(
        Status.INPUT,
        f"input '{port.name}': expected {port.dtype}, given {value.dtype} of shape {value.shape}; nothing is cast: use astype",
    )
