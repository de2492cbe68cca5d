"""Spaces by name, fitted to a data set; and spaces from a user's own file.

>>> import torch
>>> from archipel.data import Dataset, Split
>>> table = Split(torch.zeros(4, 13), torch.zeros(4, dtype=torch.int64))
>>> make_space("auto", Dataset("wine", table, table, None, "classification", 3)).name
'mlp'
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from archipel.core.errors import ArchipelError, UsageError, suggest
from archipel.core.space import Space
from archipel.data.dataset import Dataset
from archipel.spaces.user_file import user_space


@dataclass(frozen=True)
class Entry:
    """Where a space is made, for which kinds of data, and how its maker is told of the data.

    ``call`` maps (maker, data set, options) to the space.
    """

    module: str
    maker: str
    kinds: tuple[str, ...] = ("image",)
    call: Callable[[Any, Dataset, dict[str, Any]], Space] = lambda make, data, options: make(
        data.input_shape, data.classes, **options
    )


def _by_example(make: Any, dataset: Dataset, options: dict[str, Any]) -> Space:
    return make(example=dataset.example(), classes=dataset.classes, **options)


def _shufflenet(make: Any, dataset: Dataset, options: dict[str, Any]) -> Space:
    """The paper's network from 128 pixels on; smaller images get a stem that keeps their size, and fewer stages."""
    channels, height, width = dataset.input_shape
    if height != width:
        raise UsageError(f"Space 'shufflenet' takes square images, not {height}x{width}. Crop or pad them.")
    small: dict[str, Any] = {}
    if height < 128:
        stages = 2 if height < 16 else 3
        small = {"stem_stride": 1, "widths": (32, 64, 128)[:stages], "depths": (4,) * stages, "head": 256}
    return make(image=height, in_channels=channels, classes=dataset.classes, **{**small, **options})


def _next_token(make: Any, dataset: Dataset, options: dict[str, Any]) -> Space:
    """Texts are predicted token by token, so no network may look ahead."""
    return make(dataset.input_shape, dataset.classes, **{"causal": True, **options})


NAMED: dict[str, Entry] = {
    "mlp": Entry("archipel.spaces.mlp", "mlp_space", ("table", "image", "signal")),
    "mobile": Entry("archipel.spaces.mobile", "mobile_space"),
    "signal": Entry("archipel.spaces.signal", "signal_space", ("signal",)),
    "language": Entry("archipel.spaces.language", "language_space", ("text",)),
    "reversible-transformer": Entry(
        "archipel.spaces.reversible_transformer", "reversible_transformer_space", ("text",), _next_token
    ),
    "nb201": Entry("archipel.spaces.nb201", "NB201", call=_by_example),
    "micro-nb201": Entry("archipel.spaces.micro_nb201", "MicroNB201"),
    "mbconv": Entry("archipel.spaces.mbconv", "MBConvSpace"),
    "darts": Entry("archipel.spaces.darts", "DartsSpace"),
    "subsets": Entry("archipel.spaces.subsets", "SubsetSpace"),
    "micro-subsets": Entry("archipel.spaces.subsets", "MicroSubsets"),
    "hyper-cuboid": Entry("archipel.spaces.hyper_cuboid", "HyperCuboid"),
    "hardcore": Entry("archipel.spaces.hardcore", "HardCoReSpace"),
    "nasnet": Entry("archipel.spaces.nasnet", "NASNetSpace", call=_by_example),
    "shufflenet": Entry("archipel.spaces.shufflenet", "shufflenet_space", call=_shufflenet),
}
# What the data tells; everything else that a maker takes is an option.
GIVEN = ("input_shape", "classes", "example", "image", "in_channels")
DEFAULT = {"image": "mobile", "table": "mlp", "signal": "signal", "text": "language"}
SHAPES = {"image": "(C, H, W)", "table": "(F,)", "signal": "(C, T)", "text": "(T,) token ids"}


def kind_of(dataset: Dataset) -> str:
    """``"image"``, ``"signal"``, ``"table"`` or ``"text"``, by the task and the shape of the inputs.

    Raises:
        UsageError: inputs of another shape.
    """
    if dataset.task == "language":
        return "text"
    kind = {3: "image", 2: "signal", 1: "table"}.get(len(dataset.input_shape))
    if kind is None or not dataset.train.x.is_floating_point():
        raise UsageError(
            f"Data {dataset.name!r} has {dataset.train.x.dtype} inputs of shape {dataset.input_shape}, for which there "
            f"is no space of ours. Known kinds: {SHAPES}. Your own module works: --space my_file.py:MyModel."
        )
    return kind


def make_space(name: str, dataset: Dataset, **options: Any) -> Space:
    """The space ``name`` for a data set.

    Args:
        name: of a space, ``"auto"``, or ``"path/to/file.py:Name"`` for a user's own: a class or function that gives
            an ``nn.Module`` with choices or a :class:`Space`, or such a space itself. Of the keyword arguments
            ``input_shape`` and ``classes``, it is passed those it accepts.
        options: of the space's factory.

    Raises:
        UsageError: an unknown name or option, a space that does not fit the data, or a user's file that is missing,
            fails or lacks the name.
        SpaceError: options that make no space.
    """
    if ".py:" in name or name.endswith(".py"):
        return user_space(name, dataset, options)
    kind = None if name in NAMED else kind_of(dataset)
    if name == "auto" and kind:
        name = DEFAULT[kind]
    if name not in NAMED:
        raise UsageError(f"No space {name!r}. {suggest(name, [*NAMED, 'auto'])} Your own: my_file.py:MyModel.")
    entry = NAMED[name]
    kind = kind_of(dataset)
    if kind not in entry.kinds:
        fits = sorted(n for n, e in NAMED.items() if kind in e.kinds)
        raise UsageError(
            f"Space {name!r} is for {' or '.join(f'{k} {SHAPES[k]}' for k in entry.kinds)} inputs, but data "
            f"{dataset.name!r} has {kind} inputs of shape {dataset.input_shape}. Spaces that fit: {', '.join(fits)}."
        )
    make = getattr(importlib.import_module(entry.module), entry.maker)
    known = [p for p in inspect.signature(make).parameters if p not in GIVEN]
    for option in options:
        if option not in known:
            raise UsageError(f"Space {name!r} has no option {option!r}. {suggest(option, known)}")
    try:
        return entry.call(make, dataset, options)
    except (TypeError, ValueError) as error:
        if isinstance(error, ArchipelError):
            raise
        raise UsageError(f"Space {name!r} does not accept these options ({options}): {error}") from error
