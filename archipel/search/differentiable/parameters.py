"""Architecture parameters: one vector of logits for each choice of a supernet, and for each node that weighs its edges.

    α   a choice with O options has O logits (options that can only be blended come last)
    β   a node with S candidate sources has S logits, if the search weighs edges
    α   a node that takes any subset of P pairs of source and operation has P logits

Tied decisions share one vector. Decisions about sizes have none: networks of different sizes cannot be blended, so they
are fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.choice import Choice, Inputs
from archipel.core.decision import Arch, Decision
from archipel.core.errors import SpaceError, suggest
from archipel.core.subset import Subset
from archipel.core.supernet import Supernet
from archipel.spaces.operations import Zero

INITIAL_DEVIATION = 1e-3  # of the logits (DARTS, reference code)


@dataclass(frozen=True)
class Moment:
    """Where a search is; what schedules are functions of.

    Attributes:
        epoch, epochs: counted from 0, and how many there are.
        step, steps: of the whole search.
        training: False where the mixture is evaluated or read off, and no noise may enter.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    training: bool = True


@dataclass(frozen=True)
class Row:
    """One vector of logits.

    Attributes:
        name: of the decision (or, for a node without a decision, of the node).
        labels: what each logit stands for: options of a choice, or source numbers.
        modules: the choice or inputs modules that use it; several if decisions are tied.
        allowed: positions that the search is restricted to, or None for all.
    """

    name: str
    labels: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    allowed: tuple[int, ...] | None = None

    @property
    def is_choice(self) -> bool:
        return isinstance(self.modules[0], Choice)

    @property
    def derivable(self) -> list[int]:
        """Positions of a choice's options that may be chosen; zero operations only if there is nothing else."""
        choice = self.modules[0]
        if not isinstance(choice, Choice):
            return list(range(len(self.labels)))
        options = [i for i in range(len(choice.decision.options)) if self.allowed is None or i in self.allowed]
        return [i for i in options if not isinstance(choice.blended[i], Zero)] or options


class ArchParameters:
    """The logits of a search.

    Attributes:
        rows: name -> what its logits stand for.
        logits: name -> parameter ``[O]`` or ``[S]``.
        inputs: name of an inputs decision -> its first module, whether weighed or not.
        fixed: decisions that are not searched.
    """

    def __init__(self, rows: Mapping[str, Row], inputs: Mapping[str, Inputs], fixed: Arch, seed: int = 0) -> None:
        self.rows = dict(rows)
        self.inputs = dict(inputs)
        self.fixed = dict(fixed)
        generator = torch.Generator().manual_seed(seed)
        self.logits = {
            name: nn.Parameter(INITIAL_DEVIATION * torch.randn(len(row.labels), generator=generator))
            for name, row in self.rows.items()
        }

    @classmethod
    def of(
        cls, supernet: Supernet, weigh_edges: bool = False, fixed: Mapping[str, Any] | None = None, seed: int = 0
    ) -> ArchParameters:
        """The architecture parameters that a supernet needs.

        Args:
            weigh_edges: whether nodes weigh their edges. Where edges hold no choice they are weighed in any case, since
                nothing else would tell them apart.
            fixed: decisions that are not searched.

        Raises:
            SpaceError: a decision that can neither be blended nor is fixed, a wrong fixed value, or nothing to search.
        """
        settled = _settled(supernet, fixed or {})
        used: dict[str, list[nn.Module]] = {}
        inputs: dict[str, Inputs] = {}
        for module in supernet.net.modules():
            if isinstance(module, Choice) and module.decision.name not in settled:
                _check_whole(module, fixed or {})
                used.setdefault(module.decision.name, []).append(module)
            elif isinstance(module, Inputs) and module.decision.name not in settled:
                decided = bool(module.own_decisions())
                if decided:
                    inputs.setdefault(module.decision.name, module)
                if len(module.edges) > 1 and (weigh_edges or (decided and not _has_choice(module))):
                    used.setdefault(module.decision.name, []).append(module)
            elif isinstance(module, Subset):
                _check_open(module, settled)
                used.setdefault(module.name, []).append(module)
        rows = {name: _row(name, modules) for name, modules in used.items()}
        subsets = {d.name for r in rows.values() if isinstance(m := r.modules[0], Subset) for d in m.decisions}
        parts = {d.name for r in rows.values() if isinstance(m := r.modules[0], Choice) for d in m.own_decisions()}
        _check_covered(supernet, {*rows, *inputs, *settled, *subsets, *parts})
        if not rows:
            raise SpaceError(f"{supernet.space.name} has no choice that is open, so a gradient has nothing to decide.")
        return cls(rows, inputs, settled, seed)

    def check_finite(self) -> None:
        """
        Raises:
            SpaceError: a logit is NaN or infinite; names it.
        """
        for name, logits in self.logits.items():
            if not torch.isfinite(logits).all():
                bad = [label for label, v in zip(self.rows[name].labels, logits.tolist()) if v - v != 0]
                raise SpaceError(
                    f"Architecture parameters of {name!r} are not finite for {', '.join(bad)}. "
                    f"Lower the learning rates of the search."
                )

    def one_hot(self, arch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Mixture weights under which the supernet computes exactly as the architecture ``arch``.

        Sources that are taken weigh 1 each. Edges that are not taken have no weights of their own to state: their
        choices keep the first option.
        """
        out = {}
        for name, row in self.rows.items():
            if row.is_choice:
                label = row.modules[0].taken(arch)  # type: ignore[union-attr]
                out[name] = torch.zeros(len(row.labels))
                out[name][0 if label is None else row.labels.index(label)] = 1.0
            elif isinstance(subset := row.modules[0], Subset):
                out[name] = torch.zeros(len(row.labels))
                out[name][subset.positions(lambda d: arch[d.name])] = 1.0
            else:
                out[name] = torch.ones(len(row.labels))
        for name, inputs in self.inputs.items():  # weighed or not: edges that are not taken must be left out
            out[name] = torch.zeros(len(inputs.edges))
            out[name][list(inputs.sources[arch[name]])] = 1.0
        return out


def _settled(supernet: Supernet, fixed: Mapping[str, Any]) -> Arch:
    """Decisions that need no search: fixed by the user, or with a single option."""
    space = supernet.space
    for name, value in fixed.items():
        if name not in space.by_name:
            raise SpaceError(f"fixed: {space.name} has no decision {name!r}. {suggest(name, space.by_name)}")
        if not space.by_name[name].contains(value):
            raise SpaceError(f"fixed: decision {name!r} is {space.by_name[name].describe()}, not {value!r}.")
    # A node that takes all its sources may still weigh them, and a lone option may be blended with blend-only ones.
    weighed = {
        m.decision.name
        for m in supernet.net.modules()
        if isinstance(m, Inputs) or (isinstance(m, Choice) and m.blend_only)
    }
    single = {
        d.name: d.options[0]
        for d in space.decisions
        if isinstance(d, Decision) and not d.mutable and d.name not in weighed
    }
    return {**single, **fixed}


def _check_whole(choice: Choice, fixed: Mapping[str, Any]) -> None:
    """A choice that several decisions make together (a path's layer) is searched whole."""
    for d in choice.own_decisions():
        if d.name in fixed:
            raise SpaceError(f"{d.name!r} is one part of choice {choice.decision.name!r}; it cannot be fixed alone.")


def _check_open(subset: Subset, settled: Mapping[str, Any]) -> None:
    for d in subset.decisions:
        if d.name in settled:
            raise SpaceError(
                f"{d.name!r} is one pair of node {subset.name!r}, whose pairs are searched together: it cannot be "
                f"fixed."
            )


def _has_choice(inputs: Inputs) -> bool:
    return any(isinstance(m, Choice) for edge in inputs.edges for m in edge.modules())


def _row(name: str, modules: list[nn.Module]) -> Row:
    labels = [_labels(m) for m in modules]
    if len(set(labels)) > 1:
        raise SpaceError(f"Choices tied as {name!r} blend different options: {labels[0]} and {labels[1]}.")
    return Row(name, labels[0], tuple(modules))


def _labels(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, Choice):
        return tuple(map(str, module.blend_labels))
    if isinstance(module, Subset):
        return module.labels
    assert isinstance(module, Inputs)
    return tuple(map(str, range(len(module.edges))))


def _check_covered(supernet: Supernet, covered: set[str]) -> None:
    for d in supernet.space.decisions:
        if d.name not in covered:
            example = d.options[-1] if isinstance(d, Decision) else d.low
            raise SpaceError(
                f"Decision {d.name!r} ({d.describe()}) sets a size or a number of blocks; its options cannot be "
                f"blended, so a gradient cannot decide it. Fix it, as in fixed={{{d.name!r}: {example!r}}}, or search "
                f"this space with a one-shot or black-box strategy."
            )
