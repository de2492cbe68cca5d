"""A space from a user's own Python file, with every mistake explained by file and line."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
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
from archipel.spaces.type_check import check_types


def user_space(spec: str, dataset: Dataset, options: dict[str, Any]) -> Space:
    """The space that ``path.py:Name`` stands for; see :func:`archipel.spaces.catalogue.make_space`."""
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
    _call(lambda: check_types(result), spec)
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
