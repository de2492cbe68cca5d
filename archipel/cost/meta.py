"""Running a network on the meta device, quickly: shapes are inferred once for each operation and signature.

PyTorch infers many shapes in Python, at about a millisecond for each activation or norm. Networks of one space repeat
the same few operations on the same few shapes, so the inferred results are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# (operation, signature of its arguments) -> outputs as `_describe` gives them
_KNOWN: dict[Any, Any] = {}
_KNOWN_LIMIT = 200_000
_FUNCTIONAL: dict[Any, bool] = {}


def _signature(value: Any) -> Any:
    """A hashable stand-in for an argument: tensors by shape, strides and type."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, list | tuple):
        return tuple(map(_signature, value))
    return type(value), value  # the type too: 1 == 1.0 == True, but they promote differently


class _Description(tuple):
    """Size, strides and type of a tensor to be made anew."""


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Description((value.shape, value.stride(), value.dtype))
    if isinstance(value, list | tuple):
        return [type(value), *map(_describe, value)]
    return value


def _make(description: Any) -> Any:
    if isinstance(description, _Description):
        size, stride, dtype = description
        return torch.empty_strided(size, stride, dtype=dtype, device="meta")
    if isinstance(description, list):
        kind, *parts = description
        return kind(map(_make, parts))
    return description


def _is_functional(op: Any) -> bool:
    """Whether all outputs are new tensors: neither views of inputs nor inputs changed in place."""
    if op not in _FUNCTIONAL:
        values = [*op._schema.arguments, *op._schema.returns]
        _FUNCTIONAL[op] = all(v.alias_info is None for v in values)
    return _FUNCTIONAL[op]


class MetaMode(TorchDispatchMode):
    """While active, operations on meta tensors take their result's shape from memory where it is known.

    Subclasses see every operation in :meth:`seen`.

    >>> with MetaMode():
    ...     torch.relu(torch.empty(2, 3, device="meta")).shape
    torch.Size([2, 3])
    """

    def seen(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Called after each operation."""

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = self._run(op, args, kwargs)
        self.seen(op, args, kwargs, out)
        return out

    def _run(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _is_functional(op) or not any(isinstance(a, Tensor) and a.is_meta for a in args):
            return op(*args, **kwargs)
        key = (op, _signature(args), tuple((k, _signature(v)) for k, v in kwargs.items()))
        try:
            known = _KNOWN.get(key)
        except TypeError:  # an argument without a hash (a generator, a symbolic number)
            return op(*args, **kwargs)
        if known is not None:
            return _make(known)
        out = op(*args, **kwargs)
        if len(_KNOWN) >= _KNOWN_LIMIT:
            _KNOWN.clear()
        _KNOWN[key] = _describe(out)
        return out
