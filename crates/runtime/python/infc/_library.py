"""The C interface of the runtime (`infc.h`) in ctypes: its functions, its structures, and its errors as exceptions."""

from __future__ import annotations

import ctypes
import enum
import os
import sys
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Any

# The environment names another library than the one beside this file.
VARIABLE = "INFC_RUNTIME"
THREADS_OF_ARTIFACT = 2**32 - 1


class Status(enum.IntEnum):
    """What kind of error it was: `infc_status`."""

    IO = 1
    ARTIFACT = 2
    MACHINE = 3
    INPUT = 4
    OUTPUT = 5
    RUN = 6
    MEMORY = 7
    USAGE = 8


class Error(Exception):
    """What the runtime or this package refuses. The text is for people, `status` for programs."""

    def __init__(self, status: Status | None, text: str) -> None:
        super().__init__(text)
        self.status = status

    def __reduce__(self) -> Any:
        return type(self), (self.status, str(self))


class Options(ctypes.Structure):
    """`infc_options`."""

    _fields_ = [("size", c_size_t), ("threads", c_uint32), ("spin_us", c_uint32)]


class Tensor(ctypes.Structure):
    """`infc_tensor`."""

    _fields_ = [("dtype", c_int32), ("rank", c_uint32), ("dims", POINTER(c_int64)), ("data", c_void_p), ("bytes", c_size_t)]


_STATUS = c_int32
# Result and arguments of every function that this package calls.
_FUNCTIONS = {
    "infc_version": (c_char_p,),
    "infc_last_error": (c_char_p,),
    "infc_model_open_variant": (_STATUS, c_char_p, c_char_p, POINTER(c_void_p)),
    "infc_model_load_variant": (_STATUS, c_void_p, c_size_t, c_char_p, POINTER(c_void_p)),
    "infc_model_variant": (c_char_p, c_void_p),
    "infc_model_close": (None, c_void_p),
    "infc_input_count": (c_size_t, c_void_p),
    "infc_output_count": (c_size_t, c_void_p),
    "infc_input_name": (c_char_p, c_void_p, c_size_t),
    "infc_output_name": (c_char_p, c_void_p, c_size_t),
    "infc_input_dtype": (c_int32, c_void_p, c_size_t),
    "infc_output_dtype": (c_int32, c_void_p, c_size_t),
    "infc_input_rank": (c_int32, c_void_p, c_size_t),
    "infc_output_rank": (c_int32, c_void_p, c_size_t),
    "infc_input_dim": (c_int64, c_void_p, c_size_t, c_size_t),
    "infc_output_dim": (c_int64, c_void_p, c_size_t, c_size_t),
    "infc_input_dim_text": (c_char_p, c_void_p, c_size_t, c_size_t),
    "infc_output_dim_text": (c_char_p, c_void_p, c_size_t, c_size_t),
    "infc_output_state": (c_int64, c_void_p, c_size_t),
    "infc_session_create": (_STATUS, c_void_p, POINTER(Options), POINTER(c_void_p)),
    "infc_session_destroy": (None, c_void_p),
    "infc_set_input": (_STATUS, c_void_p, c_size_t, c_int32, c_void_p, c_size_t, c_void_p, c_size_t),
    "infc_input_memory": (_STATUS, c_void_p, c_size_t, c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_size_t)),
    "infc_run": (_STATUS, c_void_p),
    "infc_get_output": (_STATUS, c_void_p, c_size_t, c_void_p),
    "infc_reset": (_STATUS, c_void_p),
    "infc_memory": (_STATUS, c_void_p, POINTER(c_uint64), POINTER(c_uint64)),
}

_loaded: ctypes.CDLL | None = None


def library() -> ctypes.CDLL:
    """The runtime's library, loaded when it is first asked for."""
    global _loaded
    if _loaded is None:
        name = {"win32": "infc_runtime.dll", "darwin": "libinfc_runtime.dylib"}.get(sys.platform, "libinfc_runtime.so")
        beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
        path = os.environ.get(VARIABLE) or beside
        try:
            loading = ctypes.CDLL(path)
            for name, (result, *arguments) in _FUNCTIONS.items():
                function = getattr(loading, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise Error(Status.IO, f"the runtime's library: {error} (it is beside the package, or {VARIABLE} names it)") from None
        _loaded = loading
    return _loaded


def text(value: bytes | None) -> str:
    """Text of the interface."""
    return (value or b"").decode("utf-8", "replace")


def failed(status: int) -> Error:
    """The exception for a call that gave this status, on the thread that called."""
    return Error(Status(status), text(library().infc_last_error()))


class Handle:
    """A pointer of the library that is given back when nobody refers to it any more: arrays over a session's memory keep theirs."""

    __slots__ = ("_free", "pointer")

    def __init__(self, make: Any, free: Any, *arguments: Any) -> None:
        self.pointer: int | None = None
        self._free = free
        made = c_void_p()
        status = make(*arguments, byref(made))
        if status:
            raise failed(status)
        self.pointer = made.value

    def __del__(self) -> None:
        if self.pointer is not None:
            self._free(self.pointer)
