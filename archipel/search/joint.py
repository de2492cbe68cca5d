"""Joint spaces: training hyperparameters beside an architecture, and parts of a space held constant.

Zela, Klein, Falkner, Hutter. Towards Automated Deep Learning: Efficient Joint Neural Architecture and Hyperparameter
Search. 2018. https://arxiv.org/abs/1807.06906

    joint = JointSpace(space, training_hyperparameters())      decided together
    held(joint, lr=0.1, …)                                     only the architecture is open
    held(joint, width=32, …)                                   only the hyperparameters are open

Ranges are wide defaults for small data, to be narrowed where more is known. What the paper calls a hyperparameter but
what is part of the network (dropout, the death rate of ShakeDrop) is a decision of the architecture's own space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from archipel.core.counting import Clause
from archipel.core.decision import AnyDecision, Arch, Decision, Real
from archipel.core.errors import SpaceError, UsageError, suggest
from archipel.core.space import JointSpace, Space

if TYPE_CHECKING:
    import networkx as nx
    from torch import nn

# each is a setting of archipel.search.training.Recipe by that name, which is how it takes effect
HYPERPARAMETERS: dict[str, AnyDecision] = {
    "lr": Real("lr", 1e-4, 1.0, log=True),  # at the start; a cosine brings it to 0
    "momentum": Real("momentum", 0.0, 0.99),
    "weight_decay": Real("weight_decay", 1e-6, 1e-1, log=True),
    "batch_size": Decision("batch_size", [16, 32, 64, 128, 256], ordered=True),
    "optimizer": Decision("optimizer", ["sgd", "adamw"]),
    "label_smoothing": Real("label_smoothing", 0.0, 0.2),
    "mixup": Real("mixup", 0.0, 1.0),  # alpha of the Beta distribution; 0: none
    "cutout": Real("cutout", 0, 16, integer=True),  # side of the erased square in pixels; 0: none
}
DEFAULT = ("lr", "momentum", "weight_decay", "batch_size")
IMAGE = (*DEFAULT, "cutout", "mixup")


def training_hyperparameters(*names: str, **ranges: tuple[float, ...] | list[Any]) -> list[AnyDecision]:
    """The training hyperparameters to decide together with an architecture, for a :class:`JointSpace`.

    Args:
        names: which of ``HYPERPARAMETERS``; none: ``DEFAULT``. ``*IMAGE`` adds cutout and mixup.
        ranges: other bounds ``(low, high)`` or another list of options for one of them, on the same scale.

    Raises:
        UsageError: an unknown name, one named twice, or a range for one that was not asked for.
        SpaceError: a range that is empty, or not positive where the scale is logarithmic.

    >>> training_hyperparameters("lr", "batch_size", lr=(1e-3, 0.5), batch_size=[32, 64])[0].describe()
    'a number in [0.001, 0.5]'
    """
    names = names or DEFAULT
    for name in (*names, *ranges):
        if name not in HYPERPARAMETERS:
            raise UsageError(f"No training hyperparameter {name!r}. {suggest(name, HYPERPARAMETERS)}")
    if len(set(names)) < len(names):
        raise UsageError(f"A training hyperparameter is named twice: {', '.join(names)}.")
    unused = sorted(set(ranges) - set(names))
    if unused:
        raise UsageError(f"Ranges for {', '.join(unused)}, which are not among those searched: {', '.join(names)}.")
    return [_with_range(HYPERPARAMETERS[name], ranges.get(name)) for name in names]


def with_hyperparameters(space: Space, names: Sequence[str]) -> Space:
    """The space, joined with training hyperparameters by name (a run's setting ``joint``); itself without names.

    ``["default"]`` stands for :data:`DEFAULT`.
    """
    if not names:
        return space
    return JointSpace(space, training_hyperparameters(*(DEFAULT if list(names) == ["default"] else names)))


def _with_range(default: AnyDecision, given: tuple[float, ...] | list[Any] | None) -> AnyDecision:
    if given is None:
        return default
    if isinstance(given, list):
        return Decision(default.name, given, ordered=True)
    if not isinstance(default, Real):
        raise UsageError(f"{default.name} takes a list of options such as {list(default.options)}, not {given!r}.")
    if len(given) != 2:
        raise UsageError(f"The range of {default.name} is a pair (low, high), not {given!r}.")
    return Real(default.name, given[0], given[1], default.log, default.integer)


def held(space: Space, **values: Any) -> Space:
    """The same space with some decisions made, such as fixed hyperparameters while the architecture is searched.

    Names that are no identifiers go in as ``held(space, **{"a.b": 1})``.

    Raises:
        SpaceError: no such decision, or a value that it cannot take.

    >>> joint = JointSpace(Space([Decision("width", [8, 16])]), training_hyperparameters("lr"))
    >>> held(joint, lr=0.1).size, joint.hyper({"width": 8, "lr": 0.1})
    (2, {'lr': 0.1})
    """
    return HeldSpace(space, values)


def _restricted(clauses: Iterable[Clause], values: Arch, never_open: set[str]) -> list[Clause]:
    """The clauses that held values leave possible, with the allowed values of held parents narrowed to the held one."""
    return [
        frozenset((p, frozenset([values[p]]) if p in values else allowed) for p, allowed in clause)
        for clause in clauses
        if all(p not in never_open and (p not in values or values[p] in allowed) for p, allowed in clause)
    ]


class HeldSpace(Space):
    """A space of which some decisions are already made; see :func:`held`. What an architecture is does not change:
    canonical form, hyperparameters, graph and network are those of the whole space."""

    def __init__(self, space: Space, values: Arch) -> None:
        for name, value in values.items():
            if name not in space.by_name:
                raise SpaceError(f"{space.name} has no decision {name!r} to hold. {suggest(name, space.by_name)}")
            if not space.by_name[name].contains(value):
                raise SpaceError(f"Decision {name!r} is {space.by_name[name].describe()}, not {value!r}.")
        self.space = space
        decisions: list[AnyDecision] = []
        conditions: dict[str, list[Clause]] = {}
        never_open: set[str] = set()
        for d in space.decisions:
            if d.name in space.conditions:
                conditions[d.name] = _restricted(space.conditions[d.name], values, never_open)
                if not conditions[d.name]:
                    del conditions[d.name]
                    never_open.add(d.name)
                    continue
            decisions.append(Decision(d.name, [values[d.name]], d.ordered) if d.name in values else d)
        super().__init__(decisions, conditions)
        self.name = f"{space.name} with {', '.join(f'{n}={v}' for n, v in values.items())}"

    def canonical(self, arch: Arch) -> str:
        return self.space.canonical(arch)

    def hyper(self, arch: Arch) -> dict[str, Any]:
        return self.space.hyper(arch)

    def graph(self, arch: Arch) -> nx.DiGraph:
        return self.space.graph(arch)

    def build(self, arch: Arch, seed: int = 0) -> nn.Module:
        return self.space.build(arch, seed)
