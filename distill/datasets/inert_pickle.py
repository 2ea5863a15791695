"""A pickle of lists, dictionaries, texts, numbers and numpy arrays, read without running anything.

A pickle names functions and has them called. Here the few names that arrays are written with lead
to plain classes of this module, and any other name is refused: nothing that a file names is ever
imported or called, numpy's own functions neither.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from students.errors import UserError

_KINDS = "biuf"


def read_pickle(path: Path) -> Any:
    """What a pickle file holds; arrays are numpy's, numbers of numpy are Python's.

    Raises:
        UserError: it cannot be read, is no pickle, or asks for anything but arrays: what for.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    try:
        # latin1: arrays that Python 2 has written are texts of bytes.
        return _plain(_Reader(io.BytesIO(data), encoding="latin1").load())
    except _RefusedError as refused:
        raise UserError(
            f"{path} is not read: a pickle may run what it names, and this one asks for "
            f"{refused}; only numpy arrays are let in. Write it as JSON of the same content"
        ) from None
    except Exception as error:  # of a damaged file, nearly every type there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is no whole pickle: {reason}") from None


class _RefusedError(Exception):
    """The name that was asked for."""


class _Call:
    """What a name leads to: it can be called and nothing else; its state cannot be set either."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise _RefusedError("a change of what it names")


class _Dtype:
    """A numeric type: letter and bytes, and the order of the bytes."""

    def __init__(self, code: object = "", align: object = False, copy: object = False):
        if not (isinstance(code, str) and code[:1] in _KINDS and code[1:] in ("1", "2", "4", "8")):
            raise _RefusedError(f"an array of {str(code)[:40]!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1] if state[1] in ("<", ">", "=") else "="

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """An array as its state comes in."""

    value: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: _Dtype, shape: Any, order: str) -> NDArray[Any]:
    content = data.encode("latin1") if isinstance(data, str) else bytes(data)
    flat = np.frombuffer(content, dtype=dtype.numpy)
    return flat.reshape(tuple(shape), order="F" if order == "F" else "C")


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: Any) -> int | float:
    return _array(data, dtype, (), "C").item()


def _ndarray(*arguments: object) -> None:
    """A mere token where `_reconstruct` is told the type."""
    raise _RefusedError("a call of numpy.ndarray")


def _empty() -> bytes:
    """How protocols below 3 write no bytes."""
    return b""


def _latin1(text: str, encoding: str) -> bytes:
    """How protocols below 3 write bytes."""
    if encoding != "latin1":
        raise _RefusedError(f"the encoding {encoding!r}")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], _Call] = {
    ("numpy", "ndarray"): _Call(_ndarray),
    ("numpy", "dtype"): _Call(_Dtype),
    ("_codecs", "encode"): _Call(_latin1),
    ("__builtin__", "bytes"): _Call(_empty),
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _Call(_reconstruct)
    _NAMES[f"{_core}.multiarray", "scalar"] = _Call(_scalar)
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _Call(_array)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

    def persistent_load(self, pid: object) -> Any:
        raise _RefusedError(f"a persistent object {str(pid)[:40]!r}")


def _plain(value: Any) -> Any:
    """The stand-ins replaced by what they hold."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
