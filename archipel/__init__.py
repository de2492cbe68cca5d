"""Archipel: networks whose shape is a decision.

Names are imported when they are first used, so that ``import archipel`` is quick.

>>> import archipel
>>> archipel.Decision("op", ["conv", "skip"]).size
2
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "archipel.core.choice": ["Blend", "Choice", "Decider", "Depth", "Fixed", "Inputs", "Kernel", "Width"],
    "archipel.core.decision": ["Decision", "Real"],
    "archipel.core.errors": ["ArchipelError"],
    "archipel.core.registry": ["Paper", "discover", "get_method", "register"],
    "archipel.core.space": ["JointSpace", "Space"],
    "archipel.core.supernet": ["Supernet"],
    "archipel.data.dataset": ["Dataset", "Split"],
    "archipel.data.load": ["load"],
    "archipel.search.api": ["resume", "search"],
    "archipel.search.config": ["Budget"],
    "archipel.search.training": ["Recipe"],
    "archipel.spaces.catalogue": ["make_space"],
    "archipel.spaces.layers": [
        "ElasticBatchNorm1d",
        "ElasticBatchNorm2d",
        "ElasticConv1d",
        "ElasticConv2d",
        "ElasticLayerNorm",
        "ElasticLinear",
    ],
    "archipel.spaces.module_space": ["ModuleSpace"],
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}
__all__ = [*sorted(_HOME), "__version__"]

if TYPE_CHECKING:
    from archipel.core.choice import Blend, Choice, Decider, Depth, Fixed, Inputs, Kernel, Width
    from archipel.core.decision import Decision, Real
    from archipel.core.errors import ArchipelError
    from archipel.core.registry import Paper, discover, get_method, register
    from archipel.core.space import JointSpace, Space
    from archipel.core.supernet import Supernet
    from archipel.data.dataset import Dataset, Split
    from archipel.data.load import load
    from archipel.search.api import resume, search
    from archipel.search.config import Budget
    from archipel.search.training import Recipe
    from archipel.spaces.catalogue import make_space
    from archipel.spaces.layers import (
        ElasticBatchNorm1d,
        ElasticBatchNorm2d,
        ElasticConv1d,
        ElasticConv2d,
        ElasticLayerNorm,
        ElasticLinear,
    )
    from archipel.spaces.module_space import ModuleSpace


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        # Importing a module of a package binds the package's name here: `search` is then the package, which can be
        # called, and must stay it, so that both `archipel.search(...)` and `archipel.search.pareto` work.
        return globals().setdefault(name, value)
    raise AttributeError(f"module 'archipel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
