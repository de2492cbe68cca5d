"""Search: the run, strategies by ask/tell, and evaluation.

This package can be called: ``archipel.search(...)`` is :func:`archipel.search.api.search`. Importing any module of
the package binds it to the name ``archipel.search``, so a function of the same name beside it would be lost.

>>> import archipel
>>> import archipel.search.pareto
>>> callable(archipel.search)
True
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from archipel.search.api import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
