"""Reading pickles that strangers wrote, without running anything they say.

A pickle is a program: its ``GLOBAL`` instructions import names and its ``REDUCE`` instructions call them. Some public
data sets exist only in this format (CIFAR-10's python version, Planetoid's graphs), so it must be read. Here each
global that a file names is looked up in a table that the caller writes, and nothing else is reachable; the table may
answer with a stand-in instead of the real thing. NumPy arrays and SciPy matrices are always rebuilt by stand-ins from
their plain buffers, so that a hostile file never reaches the C code that restores the real ones.
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import Any, BinaryIO

import numpy as np

from archipel.core.errors import DataError

Globals = Mapping[tuple[str, str], Any]
_HEAP_TYPE, _IMMUTABLE_TYPE = 1 << 9, 1 << 8  # bits of type.__flags__: may its attributes be overwritten?


def restricted_load(file: BinaryIO, allowed: Globals, where: str, encoding: str = "latin1") -> Any:
    """Read one pickle, resolving its globals in ``allowed`` and nowhere else.

    Args:
        file: open for reading bytes.
        allowed: (module, name) as the file spells them -> the class or function to use, real or stand-in. The file
            may call it with any arguments and set any attribute of its instances: check what comes out.
        where: the file's name, for error messages.
        encoding: for strings that Python 2 wrote.

    Raises:
        DataError: the file names another global, or is no complete pickle.

    >>> import io
    >>> restricted_load(io.BytesIO(pickle.dumps({"a": [1, 2]})), {}, "numbers.pkl")
    {'a': [1, 2]}
    >>> restricted_load(io.BytesIO(b"cos\\nsystem\\n(S'ls'\\ntR."), {}, "evil.pkl")
    Traceback (most recent call last):
    archipel.core.errors.DataError: evil.pkl: this pickle asks for 'os.system', which ... nothing was executed...
    """
    try:
        return _Restricted(file, allowed, where, encoding).load()
    except DataError:
        raise
    except Exception as error:  # hostile bytes can raise anything; whatever it is, the file is at fault
        raise DataError(
            f"{where}: not a readable pickle ({type(error).__name__}: {error}). It may be truncated or of another "
            f"format; get the file afresh."
        ) from error


class _Restricted(pickle.Unpickler):
    def __init__(self, file: BinaryIO, allowed: Globals, where: str, encoding: str) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = allowed
        self._where = where
        self._copies: dict[tuple[str, str], Any] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        key = (module_name, global_name)
        if key not in self._allowed:
            known = ", ".join(sorted(f"{m}.{n}" for m, n in self._allowed)) or "none"
            raise DataError(
                f"{self._where}: this pickle asks for {module_name + '.' + global_name!r}, which data of this kind "
                f"never needs; it was refused and nothing was executed. Allowed: {known}."
            )
        if key not in self._copies:
            self._copies[key] = _throwaway(self._allowed[key])
        return self._copies[key]


def _throwaway(obj: Any) -> Any:
    """A copy for one load: ``BUILD`` can set attributes of classes and functions, so it must not get ours."""
    if isinstance(obj, FunctionType):
        return partial(obj)
    if isinstance(obj, type) and obj.__flags__ & _HEAP_TYPE and not obj.__flags__ & _IMMUTABLE_TYPE:
        return type(obj.__name__, (obj,), {"__slots__": (), "__module__": obj.__module__})
    return obj


class PickledDtype:
    """Stand-in for ``numpy.dtype``: numbers of fixed size only, no objects and no structures."""

    def __init__(self, kind: Any = "", align: Any = False, copy: Any = False) -> None:
        self.kind = kind.decode("ascii") if isinstance(kind, bytes) else kind
        if not isinstance(self.kind, str) or self.kind[:1] not in ("b", "i", "u", "f") or len(self.kind) > 3:
            raise ValueError(f"arrays of type {kind!r} are not read, only numbers")
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"unknown byte order {order!r}")
        self.order = order

    def real(self) -> np.dtype:
        return np.dtype(self.kind if self.order == "|" else self.order + self.kind)


class PickledArray:
    """Stand-in for ``numpy.ndarray``; ``array`` is the real one, None until the pickle has filled it."""

    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
            raise ValueError(f"an array of shape {shape!r}")
        if not isinstance(dtype, PickledDtype):
            raise ValueError(f"an array of type {dtype!r}")
        raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as a string
        real = dtype.real()
        wanted = real.itemsize * int(np.prod([int(n) for n in shape], dtype=object))
        if not isinstance(raw, bytes) or len(raw) != wanted:
            raise ValueError(f"an array of shape {shape} needs {wanted} bytes")
        self.array = np.frombuffer(raw, real).reshape(shape, order="F" if fortran else "C")


class PickledMatrix:
    """Stand-in for a SciPy sparse row matrix; :func:`as_matrix` checks and builds the real one."""

    def __setstate__(self, state: Any) -> None:
        self.parts = dict(state)


def _reconstruct(*_: Any) -> PickledArray:
    return PickledArray()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C") -> PickledArray:
    """How protocol 5 stores a contiguous array."""
    out = PickledArray()
    out.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return out


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Python 3 writes bytes this way into old protocols; ``codecs.encode`` itself would take any codec."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes that are not stored as latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Old protocols write an empty bytes object as a call without arguments."""
    return b""


NUMPY_GLOBALS: dict[tuple[str, str], Any] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledDtype,
}
SPARSE_GLOBALS: dict[tuple[str, str], Any] = {
    (f"scipy.sparse.{m}", "csr_matrix"): PickledMatrix for m in ("csr", "_csr")
}
CONTAINER_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
    ("builtins", "list"): list,
}


def as_array(obj: Any, where: str) -> np.ndarray:
    """The array that a pickle loaded with ``NUMPY_GLOBALS`` holds.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(obj, PickledArray) or obj.array is None:
        raise DataError(f"{where}: expected an array, found {type(obj).__name__}.")
    return obj.array


def as_matrix(obj: Any, where: str) -> Any:
    """The ``scipy.sparse.csr_matrix`` that a pickle loaded with ``SPARSE_GLOBALS`` holds, its indices checked.

    Raises:
        DataError: it is something else, or its parts do not fit together.
    """
    from scipy.sparse import csr_matrix

    if not isinstance(obj, PickledMatrix) or not isinstance(getattr(obj, "parts", None), dict):
        raise DataError(f"{where}: expected a sparse matrix, found {type(obj).__name__}.")
    data, indices, indptr = (as_array(obj.parts.get(k), f"{where}: {k!r}") for k in ("data", "indices", "indptr"))
    shape = obj.parts.get("_shape", obj.parts.get("shape"))
    try:
        matrix = csr_matrix((data, indices, indptr), shape=shape)
        matrix.check_format(full_check=True)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{where}: the sparse matrix is inconsistent ({error}).") from error
    return matrix
