"""Choices: places in a network where several things could stand, and deciders, who say which one does.

Choice modules go into an ordinary ``nn.Module``. They compute by asking the decider in their *seat*: a search decides
once, before training (:class:`Fixed`); a gradient blends all options while training (:class:`Blend`); a deployer or a
router is another decider. The modules are the same for all of them.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from archipel.core.counting import Clause
from archipel.core.decision import Decision
from archipel.core.errors import ShapeError, SpaceError

if TYPE_CHECKING:
    from archipel.core.subset import Subset

# --- sizes that are decisions --------------------------------------------------------------------------------------


class _Arithmetic:
    """Sizes derived from decided sizes: ``width * 4``, ``a + b``, ``width // 2``."""

    def __mul__(self, other: Size) -> Derived:
        return Derived(operator.mul, self, other)  # type: ignore[arg-type]

    __rmul__ = __mul__

    def __add__(self, other: Size) -> Derived:
        return Derived(operator.add, self, other)  # type: ignore[arg-type]

    __radd__ = __add__

    def __floordiv__(self, other: Size) -> Derived:
        return Derived(operator.floordiv, self, other)  # type: ignore[arg-type]


class Width(_Arithmetic, Decision):
    """A decided number of channels or features.

    >>> Width("w", [24, 16]).options
    (16, 24)
    """

    def __init__(self, name: str, options: Sequence[int]) -> None:
        if not all(isinstance(o, int) and not isinstance(o, bool) and o > 0 for o in options):
            raise SpaceError(f"Width {name!r} needs positive integers, not {list(options)!r}.")
        super().__init__(name, sorted(options), ordered=True)


class Kernel(Decision):
    """A decided kernel size; odd, so that a padding of half the kernel keeps the size."""

    def __init__(self, name: str, options: Sequence[int]) -> None:
        if not all(isinstance(o, int) and o > 0 and o % 2 == 1 for o in options):
            raise SpaceError(f"Kernel {name!r} needs odd positive integers, not {list(options)!r}.")
        super().__init__(name, sorted(options), ordered=True)


@dataclass(frozen=True)
class Derived(_Arithmetic):
    """A size computed from decided ones."""

    function: Callable[[int, int], int]
    left: Size
    right: Size


Size = int | Decision | Derived


def decisions_in(size: Size) -> list[Decision]:
    """The decisions a size depends on."""
    if isinstance(size, Derived):
        return decisions_in(size.left) + decisions_in(size.right)
    return [size] if isinstance(size, Decision) else []


def size_at(size: Size, decider: Decider) -> int:
    """The size under a decider."""
    if isinstance(size, int):
        return size
    if isinstance(size, Derived):
        return size.function(size_at(size.left, decider), size_at(size.right, decider))
    return decider.value(size)


def largest(size: Size) -> int:
    """The largest size possible (derived sizes are monotone in their parts)."""
    return size_at(size, EVERYTHING)


# --- who decides ---------------------------------------------------------------------------------------------------


class Decider:
    """Answers the questions that choice modules ask while they compute."""

    def value(self, decision: Decision) -> Any:
        """What a decision came out as."""
        raise NotImplementedError

    def choose(self, choice: Choice, *args: Any) -> Any:
        """The output of a :class:`Choice` for inputs ``args``."""
        return choice.options[self.value(choice.decision)](*args)

    def gather(self, inputs: Inputs, states: Sequence[Tensor]) -> Tensor:
        """The output of an :class:`Inputs` for all candidate source tensors."""
        first, *others = inputs.sources[self.value(inputs.decision)]
        total = inputs.edges[first](states[first])
        for i in others:
            total = total + inputs.edges[i](states[i])
        return total

    def merge(self, subset: Subset, states: Sequence[Tensor]) -> Tensor:
        """The output of a :class:`~archipel.core.subset.Subset` for all candidate source tensors."""
        return subset.decided(states, subset.positions(self.value))


class Everything(Decider):
    """The largest of every size and the first of every list: who sits where nobody was seated."""

    def value(self, decision: Decision) -> Any:
        return decision.options[-1] if decision.ordered else decision.options[0]


EVERYTHING = Everything()


class Fixed(Decider):
    """An architecture decides."""

    def __init__(self, arch: Mapping[str, Any]) -> None:
        self.arch = arch

    def value(self, decision: Decision) -> Any:
        return self.arch[decision.name]


Mix = Callable[[Sequence[nn.Module], Tensor, Any], Any]


class Blend(Fixed):
    """Weights decide by degrees: every :class:`Choice` with weights returns a mixture of its options.

    Args:
        weights: decision name -> weights of a choice's options ``[O]`` (blend-only ones last), or of the candidate
            sources of an inputs decision ``[S]``.
        mix: ``mix(options, weights, x)``: how options are blended.
        arch: for decisions without weights.
    """

    def __init__(self, weights: Mapping[str, Tensor], mix: Mix, arch: Mapping[str, Any] | None = None) -> None:
        super().__init__(arch or {})
        self.weights = weights
        self.mix = mix

    def choose(self, choice: Choice, *args: Any) -> Any:
        w_O = self.weights.get(choice.decision.name)
        return super().choose(choice, *args) if w_O is None else self.mix(choice.blended, w_O, *args)

    def gather(self, inputs: Inputs, states: Sequence[Tensor]) -> Tensor:
        if inputs.decision.name in self.arch:
            return super().gather(inputs, states)
        w_S = self.weights.get(inputs.decision.name)
        outputs = [edge(state) for edge, state in zip(inputs.edges, states)]
        if w_S is not None:
            outputs = [w * y for w, y in zip(w_S, outputs)]
        return sum(outputs[1:], outputs[0])

    def merge(self, subset: Subset, states: Sequence[Tensor]) -> Tensor:
        w_P = self.weights.get(subset.name)
        if w_P is None:
            return super().merge(subset, states)
        live = w_P.detach().nonzero().flatten().tolist()
        return subset.weighted(states, live, w_P[live])


class Seat:
    """Where the decider sits; one seat is shared by all choice modules of a network."""

    def __init__(self, decider: Decider = EVERYTHING) -> None:
        self.decider = decider


# --- modules -------------------------------------------------------------------------------------------------------

Extract = Callable[[nn.Module], nn.Module]


class Undecided:
    """Mixin of every module that depends on decisions.

    ``seat`` starts as a common one in which nobody decides; a space gives each network a seat of its own.
    """

    seat: Seat = Seat()

    def own_decisions(self) -> list[Decision]:
        """Decisions that this module itself depends on."""
        raise NotImplementedError

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        """Child modules, each with the values of this module's decisions under which it is used."""
        return iter(())

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        """The plain module that stands here under a decider, with copied weights; ``inner`` extracts children."""
        raise NotImplementedError

    def live(self, decider: Decider) -> dict[str, tuple[slice, ...]]:
        """For each own parameter of which only a part is used: the slices in use."""
        return {}


class Choice(Undecided, nn.Module):
    """One of several modules.

    Args:
        name: of the decision.
        options: label -> module; all take and return the same shapes.
        blend_only: options that take part when options are blended but can never be chosen (``none`` in DARTS cells).

    >>> choice = Choice("op", {"double": nn.Linear(2, 2), "same": nn.Identity()})
    >>> choice.seat = Seat(Fixed({"op": "same"}))
    >>> choice(Tensor([1, 2]))
    tensor([1., 2.])
    """

    def __init__(
        self, name: str, options: Mapping[str, nn.Module], blend_only: Mapping[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.decision = Decision(name, list(options))
        # Labels may hold characters that ModuleDict refuses (dots), so modules live in a list.
        self.blended = nn.ModuleList([*options.values(), *(blend_only or {}).values()])
        self.blend_only = tuple(blend_only or ())

    @property
    def options(self) -> dict[str, nn.Module]:
        return dict(zip(self.decision.options, self.blended))  # type: ignore[arg-type]

    def taken(self, arch: Mapping[str, Any]) -> str | None:
        """The label that an architecture takes here; None where the choice is closed."""
        return str(arch[self.decision.name]) if self.decision.name in arch else None

    @property
    def blend_labels(self) -> tuple[str, ...]:
        return (*self.decision.options, *self.blend_only)  # type: ignore[return-value]

    def own_decisions(self) -> list[Decision]:
        return [self.decision]

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for label, module in self.options.items():
            yield module, frozenset([(self.decision.name, frozenset([label]))])

    def forward(self, *args: Any) -> Any:
        return self.seat.decider.choose(self, *args)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        return inner(self.options[decider.value(self.decision)])


class SumOf(nn.Module):
    """Sum of modules applied to some of the given tensors: what an :class:`Inputs` is once decided."""

    def __init__(self, index: Sequence[int], edges: Iterable[nn.Module]) -> None:
        super().__init__()
        self.index = tuple(index)
        self.edges = nn.ModuleList(edges)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        outputs = [edge(states[i]) for i, edge in zip(self.index, self.edges)]
        return sum(outputs[1:], outputs[0])


class Inputs(Undecided, nn.Module):
    """Which ``k`` of several tensors are taken, each through its own edge module, and summed.

    The options are named by the sources, such as ``"0,2"``.

    Args:
        name: of the decision.
        edges: one module for each candidate source (``nn.Identity()`` for a plain sum).
        k: how many sources are taken.
    """

    def __init__(self, name: str, edges: Sequence[nn.Module], k: int = 1) -> None:
        super().__init__()
        if not 1 <= k <= len(edges):
            raise SpaceError(f"Inputs {name!r} takes {k} of {len(edges)} sources; k must be from 1 to {len(edges)}.")
        self.k = k
        self.sources = {",".join(map(str, c)): c for c in itertools.combinations(range(len(edges)), k)}
        self.decision = Decision(name, list(self.sources))
        self.edges = nn.ModuleList(edges)

    def own_decisions(self) -> list[Decision]:
        return [self.decision]

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for i, edge in enumerate(self.edges):
            using = frozenset(label for label, chosen in self.sources.items() if i in chosen)
            yield edge, frozenset([(self.decision.name, using)])

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        if len(states) != len(self.edges):
            raise ShapeError(f"Inputs {self.decision.name!r} has {len(self.edges)} sources but got {len(states)}.")
        return self.seat.decider.gather(self, states)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        index = self.sources[decider.value(self.decision)]
        return SumOf(index, [inner(self.edges[i]) for i in index])


class Depth(Undecided, nn.Module):
    """The first so many of a row of blocks.

    Args:
        name: of the decision.
        blocks: applied one after the other; those that may be last must end in a shape that the rest accepts.
        min: smallest number of blocks.
    """

    def __init__(self, name: str, blocks: Sequence[nn.Module], min: int = 0) -> None:
        super().__init__()
        if not 0 <= min <= len(blocks):
            raise SpaceError(f"Depth {name!r}: min is {min}, but there are {len(blocks)} blocks.")
        self.decision = Decision(name, list(range(min, len(blocks) + 1)), ordered=True)
        self.blocks = nn.ModuleList(blocks)

    def own_decisions(self) -> list[Decision]:
        return [self.decision]

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for i, block in enumerate(self.blocks):
            deep_enough = frozenset(d for d in self.decision.options if d > i)  # type: ignore[operator]
            yield block, frozenset([(self.decision.name, deep_enough)])

    def forward(self, x: Any) -> Any:
        for i in range(self.seat.decider.value(self.decision)):
            x = self.blocks[i](x)
        return x

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        return nn.Sequential(*[inner(self.blocks[i]) for i in range(decider.value(self.decision))])
