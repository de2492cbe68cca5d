"""Every option of a choice must fit where it stands: checked before anything is trained, by shapes without memory.

At each choice all options are run on the meta device and must give the same shape (*instant* equality for the space's
input); where the types of all of them are known, the result also says whether they agree for *every* input, or only
for this one. Sources that a node sums must agree too: an addition would otherwise spread a smaller map over a larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Everything, Inputs
from archipel.core.errors import SpaceError
from archipel.core.supernet import Supernet
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.shape_types import type_of

Shape = tuple[int, ...]


@dataclass
class Checked:
    """What was found.

    Attributes:
        choices: name -> the shapes ``[B, C, …]`` that go in and come out.
        by_type: name -> whether its options agree for every input; None where a type is not known.
    """

    choices: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    by_type: dict[str, bool | None] = field(default_factory=dict)


class _Checker(Everything):
    def __init__(self) -> None:
        self.found = Checked()

    def choose(self, choice: Choice, *args: Any) -> Any:
        name = choice.decision.name
        outputs = {}
        for label, option in zip(choice.blend_labels, choice.blended):
            try:
                outputs[label] = option(*args)
            except SpaceError:
                raise
            except Exception as error:
                raise SpaceError(
                    f"Option {label!r} of choice {name!r} cannot take an input of shape {_shape(args)}: {error}"
                ) from error
        first, reference = next(iter(outputs.items()))
        for label, y in outputs.items():
            if _shape(y) != _shape(reference):
                raise SpaceError(
                    f"Choice {name!r}: for an input of shape {_shape(args)}, option {first!r} gives "
                    f"{_shape(reference)} but {label!r} gives {_shape(y)}. All options of a choice need the same type; "
                    f"adapt stride, padding or channels of one."
                )
        if isinstance(reference, Tensor):
            self.found.choices[name] = _shape(args), _shape(reference)
            self.found.by_type[name] = _same_type(list(choice.blended))
        return reference

    def gather(self, inputs: Inputs, states: Sequence[Tensor]) -> Tensor:
        outputs = [edge(state) for edge, state in zip(inputs.edges, states)]
        for i, y in enumerate(outputs):
            if _shape(y) != _shape(outputs[0]):
                raise SpaceError(
                    f"Node {inputs.decision.name!r}: source 0 arrives as {_shape(outputs[0])} but source {i} as "
                    f"{_shape(y)}; sources that are summed need the same shape."
                )
        return outputs[0]


def check_types(space: ModuleSpace) -> Checked:
    """Check all choices of a space, on the meta device.

    Raises:
        SpaceError: an option that cannot take its input, or options of different types; names choice and option.
    """
    with torch.device("meta"):
        net = Supernet(space.factory(), space)
    checker = _Checker()
    net.decider = checker
    net.eval()
    with torch.no_grad():
        net(torch.empty_like(space.example[:1], device="meta"))
    return checker.found


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, tuple | list):
        shapes = tuple(_shape(v) for v in value)
        return shapes[0] if len(shapes) == 1 else shapes
    return type(value).__name__


def _same_type(options: list[nn.Module]) -> bool | None:
    types = [type_of(o) for o in options]
    if any(t is None for t in types):
        return None
    known = [t for t in types if t is not None]
    return all(known[0].same(t) for t in known[1:])
