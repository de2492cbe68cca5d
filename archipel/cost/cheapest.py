"""The cheapest architecture of a space: exact for small spaces, found by descent in large ones, and labelled so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from archipel.core.decision import Arch, Decision
from archipel.core.space import Space

# Spaces up to this size are searched for their cheapest network by looking at every one.
SMALL = 4096


@dataclass(frozen=True)
class Cheapest:
    """The cheapest architecture that was found; ``exact`` if there is none cheaper."""

    arch: Arch
    value: float
    exact: bool
    how: str


def cheapest(
    space: Space, cost: Callable[[Arch], float], enough: float = -math.inf, seed: int = 0, starts: int = 4
) -> Cheapest:
    """The architecture of smallest cost: by looking at all of a small space, else by coordinate descent.

    Args:
        enough: stop at a cost of at most this.
        starts: descents; the first from the first option of every decision, the others from random architectures.

    >>> from archipel.core.decision import Decision
    >>> cheapest(Space([Decision("w", [3, 1, 2])]), lambda arch: arch["w"])
    Cheapest(arch={'w': 1}, value=1, exact=True, how='all 3 compared')
    """
    rng = Random(seed)
    first = _first(space)
    best, value = first, cost(first)
    if value <= enough:
        return Cheapest(best, value, False, "the first that is cheap enough")
    if space.size <= SMALL:
        for arch in space.enumerate():
            this = cost(arch)
            if this < value:
                best, value = arch, this
                if value <= enough:
                    return Cheapest(best, value, False, "the first that is cheap enough")
        return Cheapest(best, value, True, f"all {space.size:,} compared")
    for arch in itertools.chain([first], (space.sample(rng) for _ in range(starts - 1))):
        arch, this = _descend(space, cost, arch, enough, rng)
        if this < value:
            best, value = arch, this
        if value <= enough:
            return Cheapest(best, value, False, "the first that is cheap enough")
    return Cheapest(best, value, False, f"coordinate descent from {starts} architectures")


def _first(space: Space) -> Arch:
    arch: Arch = {}
    for d in space.decisions:
        if space.is_open(d.name, arch):
            arch[d.name] = d.options[0] if isinstance(d, Decision) else d.decode(0.0)
    return arch


def _descend(space: Space, cost: Callable[[Arch], float], arch: Arch, enough: float, rng: Random) -> tuple[Arch, float]:
    """Change one decision after the other to its cheapest option, until nothing gets cheaper."""
    value = cost(arch)
    improved = True
    while improved and value > enough:
        improved = False
        for d in space.decisions:
            if d.name not in arch or not isinstance(d, Decision):
                continue
            for option in d.options:
                if option == arch.get(d.name):
                    continue
                other = space.complete({**arch, d.name: option}, rng)
                this = cost(other)
                if this < value:
                    arch, value, improved = other, this, True
                if d.name not in arch:
                    break
    return arch, value
