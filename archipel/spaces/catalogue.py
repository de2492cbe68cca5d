"""Spaces by name, fitted to a data set; and spaces from a user's own file.

>>> from archipel.data import Dataset, Split
>>> table = Split(torch.zeros(4, 13), torch.zeros(4, dtype=torch.int64))
>>> make_space("auto", Dataset("wine", table, table, None, "classification", 3)).name
'mlp'
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import torch
from torch import nn

from archipel.core.errors import ArchipelError, SpaceError, UsageError, suggest
from archipel.core.space import Space
from archipel.data.dataset import Dataset
from archipel.spaces.module_space import ModuleSpace


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


NAMED: dict[str, Entry] = {
    "mlp": Entry("archipel.spaces.mlp", "mlp_space", ("table", "image", "signal")),
    "mobile": Entry("archipel.spaces.mobile", "mobile_space"),
    "signal": Entry("archipel.spaces.signal", "signal_space", ("signal",)),
    "language": Entry("archipel.spaces.language", "language_space", ("text",)),
    "nb201": Entry("archipel.spaces.nb201", "NB201", call=_by_example),
    "micro-nb201": Entry("archipel.spaces.micro_nb201", "MicroNB201"),
    "darts": Entry("archipel.spaces.darts", "DartsSpace"),
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


# --- a user's own --------------------------------------------------------------------------------------------------


def user_space(spec: str, dataset: Dataset, options: dict[str, Any]) -> Space:
    """The space that ``path.py:Name`` stands for; see :func:`make_space`."""
    path_text, _, name = spec.rpartition(":")
    if not path_text.endswith(".py") or not name:
        raise UsageError(f"{spec!r} should be FILE.py:NAME, such as my_file.py:MyModel, with NAME a class or function.")
    path = Path(path_text).expanduser()
    module = load_file(path)
    if not hasattr(module, name):
        own = {n: v for n, v in vars(module).items() if not n.startswith("_")}
        known = [n for n, v in own.items() if getattr(v, "__module__", module.__name__) == module.__name__]
        raise UsageError(f"{path} defines no {name!r}. {suggest(name, known)}")
    made = getattr(module, name)
    if isinstance(made, Space):
        if options:
            raise UsageError(f"{spec} is a ready space, so it takes no options, but got {sorted(options)}.")
        return made
    if isinstance(made, nn.Module):
        raise UsageError(
            f"{spec} is a module that already exists; give the class or a function that makes it, since the space "
            f"makes it several times (also without memory, on the meta device)."
        )
    if not callable(made):
        raise UsageError(f"{spec} is a {type(made).__name__}; it should be a class, a function or a Space.")
    factory = functools.partial(made, **_accepted(made, spec, dataset, options))
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):  # else it cannot be but a module
        with torch.device("meta"):
            given = _call(factory, spec)
        if isinstance(given, Space):
            return _call(factory, spec)  # once more with real tensors: a space may hold an example
        if not isinstance(given, nn.Module):
            kind = type(given).__name__
            raise UsageError(f"{spec} gave a {kind}; it should give an nn.Module with choices, or a Space.")
    result = _call(lambda: ModuleSpace(factory, dataset.example(), name=name), spec)
    _check_outputs(result, spec, dataset)
    return result


def load_file(path: Path) -> ModuleType:
    """Run a Python file as a module.

    Raises:
        UsageError: the file is missing or fails; names its line.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file (looked in {Path.cwd()}).")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    # Registered under a name of its own, so that dataclasses and pickling to worker processes find their classes.
    label = f"archipel_user_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(label, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[label]
        raise UsageError(f"{path} could not be loaded: {_where(error, path)}") from error
    return module


def _where(error: BaseException, path: Path | None = None) -> str:
    """Type and message of an error, and the last line of the user's file on the way to it."""
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path and Path(f.filename).resolve() == path.resolve()] if path else frames
    if isinstance(error, SyntaxError) or not own:
        return text
    return f"{text} (line {own[-1].lineno}: {own[-1].line})"


def _accepted(made: Callable[..., Any], spec: str, dataset: Dataset, options: dict[str, Any]) -> dict[str, Any]:
    """Those of ``input_shape``, ``classes`` and the options that a user's callable takes."""
    try:
        parameters = inspect.signature(made).parameters
    except (TypeError, ValueError):
        return dict(options)
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {"input_shape": dataset.input_shape, "classes": dataset.classes}
    named = {n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    arguments = {n: v for n, v in given.items() if anything or n in named}
    for option, value in options.items():
        if option not in named and not anything:
            raise UsageError(f"{spec} has no option {option!r}. {suggest(option, named - set(given))}")
        arguments[option] = value
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in optional]
    missing = [n for n in needed if n not in arguments]
    if missing:
        raise UsageError(
            f"{spec} needs {', '.join(missing)}, which nobody gives: only input_shape and classes are known. "
            f"Give the others a default, or pass them as options."
        )
    return arguments


def _call(factory: Callable[[], Any], spec: str) -> Any:
    path = Path(spec.rpartition(":")[0])
    try:
        return factory()
    except ArchipelError as error:
        raise type(error)(f"{spec}: {error}") from error
    except Exception as error:
        raise UsageError(f"{spec} failed: {_where(error, path)}") from error


def _check_outputs(space: ModuleSpace, spec: str, dataset: Dataset) -> None:
    """Run one architecture without memory, to see that it accepts the inputs and gives the right outputs."""
    arch = space.sample(Random(0))
    example = dataset.example().to("meta")
    expected = (len(example), *dataset.input_shape[: 1 if dataset.task == "language" else 0], dataset.classes)
    try:
        with torch.no_grad():
            got = space.build_meta(arch).eval()(example)
    except Exception as error:
        raise UsageError(
            f"{spec} does not run on inputs of shape {tuple(example.shape)} (architecture {arch}): "
            f"{_where(error, Path(spec.rpartition(':')[0]))}"
        ) from error
    if not isinstance(got, torch.Tensor) or tuple(got.shape) != expected:
        shape = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
        raise SpaceError(
            f"{spec} gives outputs of shape {shape} for inputs of shape {tuple(example.shape)}, but data "
            f"{dataset.name!r} needs {expected}: one value for each of its {dataset.classes} classes or outputs."
        )
