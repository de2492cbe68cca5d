"""The protocol ladder: what training tricks are worth, on the same random architectures in every arm.

Yang, Esperanca, Carlucci. NAS evaluation is frustratingly hard. 2020. https://arxiv.org/abs/1912.12522

    Base | one trick each: Auxiliary, DropPath, Cutout | CD = Cutout + DropPath | CDA = CD + Auxiliary |
    CDA wider | CDA + augmentation | that longer | that longer and wider

    auxiliary   a second classifier halfway up, weight .4        drop path   up to .2, rising over the training
    cutout      a square of half the side (16 of 32)             wider       50 channels for 36
    longer      1500 epochs for 600                              augmentation  see below

From CD on the arms build on each other; the single tricks do not. An arm leaves out what a space or data set cannot
take and says so; arms that become equal in this way are run once. Departure: where the paper uses AutoAugment, whose
policy was learned on CIFAR-10, this uses one random operation on each image (:mod:`archipel.data.augment`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import SpaceError, UsageError, suggest
from archipel.core.space import Space
from archipel.data.dataset import Dataset
from archipel.search.evaluation.compare import text_table
from archipel.search.evaluation.judging import StandAlone, drop_paths, judge_grid
from archipel.search.evaluation.notebook import Notebook
from archipel.search.evaluation.runs import short_hash
from archipel.search.training import Recipe

TRICKS = ("auxiliary", "drop path", "cutout", "wider", "augmentation", "longer")
_CDA = ("cutout", "drop path", "auxiliary")
ARMS: dict[str, tuple[str, ...]] = {
    "Base": (),
    "Auxiliary": ("auxiliary",),
    "DropPath": ("drop path",),
    "Cutout": ("cutout",),
    "CD": ("cutout", "drop path"),
    "CDA": _CDA,
    "CDA wider": (*_CDA, "wider"),
    "CDA augmented": (*_CDA, "augmentation"),
    "CDA augmented longer": (*_CDA, "augmentation", "longer"),
    "CDA augmented longer wider": (*_CDA, "augmentation", "longer", "wider"),
}
# What factories of spaces call the channels of their first layers.
WIDTHS = ("C", "channels", "filters", "width")


@dataclass(frozen=True)
class Network:
    """A space together with the options that a protocol may change.

    Args:
        make: makes the space from keywords; its signature tells which tricks it can take.
        options: keywords of the base protocol.

    >>> from archipel.spaces.micro_nb201 import MicroNB201
    >>> net = Network(MicroNB201, {"input_shape": (1, 8, 8), "classes": 10, "C": 18})
    >>> net.changed(C=25).options["C"], net.width
    (25, ('C', 18))
    """

    make: Callable[..., Space]
    options: Mapping[str, Any]

    def space(self) -> Space:
        return self.make(**self.options)

    def changed(self, **options: Any) -> Network:
        """With other options.

        Raises:
            UsageError: the factory has no such option.
        """
        known = self.parameters
        for name in options:
            if name not in known:
                raise UsageError(f"{getattr(self.make, '__name__', 'The space')} has no option {name!r}. "
                                 f"{suggest(name, known)}")  # fmt: skip
        return replace(self, options={**self.options, **options})

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.make).parameters

    @property
    def width(self) -> tuple[str, int] | None:
        """Name and value of the option that sets the channels; None if there is none."""
        for name in WIDTHS:
            value = self.options.get(name, self.parameters[name].default if name in self.parameters else None)
            if name in self.parameters and isinstance(value, int):
                return name, value
        return None

    def recorded(self) -> dict[str, Any]:
        return {k: v for k, v in self.options.items() if isinstance(v, str | int | float | bool | tuple | list)}


@dataclass(frozen=True)
class Strength:
    """How strong the tricks are; the paper's by default.

    Args:
        drop_path: final probability.
        cutout: side of the square; half of the image's if None.
        wider, longer: factors of the channels and the epochs.
    """

    drop_path: float = 0.2
    cutout: int | None = None
    wider: float = 50 / 36
    longer: float = 2.5


def with_tricks(
    base: StandAlone, network: Network, tricks: Sequence[str], strength: Strength = Strength()
) -> StandAlone:
    """A judge whose training uses tricks.

    Args:
        base: judge without tricks, of the space that ``network`` makes.

    Raises:
        UsageError: an unknown trick, or one that this space or these data cannot take; says why.
        SpaceError: the space cannot be made in this form.
    """
    recipe, shape = base.recipe, base.data[0].x.shape[1:]
    drop_path = 0.0
    for trick in tricks:
        if trick not in TRICKS:
            raise UsageError(f"Unknown trick {trick!r}. {suggest(trick, TRICKS)}")
        if trick in ("cutout", "augmentation") and len(shape) != 3:
            raise UsageError(f"{trick} is for images (C, H, W), not inputs of shape {tuple(shape)}")
        if trick == "auxiliary":
            network = network.changed(auxiliary=True)
        elif trick == "drop path":
            drop_path = strength.drop_path
            network = network.changed(drop_path=drop_path) if "drop_path" in network.parameters else network
        elif trick == "cutout":
            recipe = replace(recipe, cutout=strength.cutout or max(1, shape[-1] // 2))
        elif trick == "augmentation":
            recipe = replace(recipe, augmentation="random-operation")
        elif trick == "longer":
            recipe = replace(recipe, epochs=round(recipe.epochs * strength.longer))
        elif network.width is None:
            raise UsageError(f"the space has none of the options {', '.join(WIDTHS)}, so no width to change")
        else:
            name, C = network.width
            network = network.changed(**{name: max(C + 2, 2 * round(C * strength.wider / 2))})
    space = network.space()
    if drop_path and not _has_paths(space):
        raise UsageError(f"networks of {space.name} have no drop-path modules, so no path can be left out")
    return replace(base, space=space, recipe=recipe, network=network.recorded(), drop_path=drop_path)


def _has_paths(space: Space, tries: int = 16) -> bool:
    """Whether any of some random architectures has a path to leave out."""
    rng, build = Random(0), getattr(space, "build_meta", space.build)
    return any(drop_paths(build(space.sample(rng))) for _ in range(tries))


def unavailable(base: StandAlone, network: Network, strength: Strength = Strength()) -> dict[str, str]:
    """The tricks that a space or data set cannot take, and why."""
    out = {}
    for trick in TRICKS:
        try:
            with_tricks(base, network, [trick], strength)
        except (UsageError, SpaceError) as error:
            out[trick] = str(error)
    return out


def protocol_ladder(
    network: Network,
    dataset: Dataset,
    recipe: Recipe,
    archs: int | Sequence[Arch] = 8,
    seeds: int = 1,
    arms: Mapping[str, Sequence[str]] = ARMS,
    strength: Strength = Strength(),
    judged_on: str = "test",
    executor: Executor | None = None,
    notebook: Notebook | None = None,
) -> dict[str, Any]:
    """Train the same architectures under every arm of the ladder.

    Args:
        network: the space under the base protocol.
        recipe: of the base protocol.
        archs: architectures, or how many uniform random ones (of a fixed seed).
        seeds: trainings of each architecture in each arm.
        arms: name -> tricks.

    Returns:
        ``arms`` (for each: tricks, what was left out, protocol hash, mean and standard deviation over architectures,
        their values), ``unavailable`` (trick -> why), ``skipped`` (arm -> the arm it equals), the spread that tricks
        and architectures cause, ``archs`` and ``text``.

    Raises:
        UsageError: fewer than 2 architectures, or a training that diverged.
    """
    space = network.space()
    base = StandAlone.on(
        dataset, space, recipe, judged_on, f"protocol ladder on {space.name}", network=network.recorded()
    )
    drawn = random_architectures(space, archs) if isinstance(archs, int) else list(archs)
    if len(drawn) < 2:
        raise UsageError(f"{len(drawn)} architecture(s), need >= 2 for a standard deviation in each arm.")
    cannot = unavailable(base, network, strength)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    first: dict[frozenset[str], str] = {}
    for name, tricks in arms.items():
        possible = [t for t in tricks if t not in cannot]
        same = first.setdefault(frozenset(possible), name)
        if same != name:
            skipped[name] = same
            continue
        judge = with_tricks(base, network, possible, strength)
        values = judge_grid(judge, drawn, seeds, executor, notebook)
        rows.append({
            "arm": name,
            "tricks": possible,
            "left_out": [t for t in tricks if t in cannot],
            "protocol": dict(judge.protocol),
            "protocol_hash": short_hash(judge.protocol),
            "mean": float(values.mean()),
            "std": float(values.mean(1).std(ddof=1)),
            "values": values.tolist(),
        })  # fmt: skip
    return {"arms": rows, "unavailable": cannot, "skipped": skipped, "archs": drawn, **_spread(rows),
            "text": ladder_text(rows, cannot, skipped)}  # fmt: skip


def random_architectures(space: Space, n: int, seed: int = 0) -> list[Arch]:
    """Uniform random architectures of a space, with replacement: its random-sampling baseline.

    Raises:
        UsageError: fewer than 2, from which no spread can be known.
    """
    if n < 2:
        raise UsageError(f"A random baseline of {n} architecture(s) has no spread; need >= 2.")
    rng = Random(f"random architectures/{seed}")
    return [space.sample(rng) for _ in range(n)]


def _spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What tricks change for the average architecture, and what architectures change under an average arm."""
    means = np.array([r["mean"] for r in rows])
    return {
        "std_of_tricks": float(means.std(ddof=1)) if len(means) > 1 else None,
        "range_of_tricks": float(np.ptp(means)),
        "std_of_architectures": float(np.sqrt(np.mean([r["std"] ** 2 for r in rows]))),
        "range_of_architectures": float(np.mean([np.ptp(np.mean(r["values"], axis=1)) for r in rows])),
    }


def ladder_text(rows: Sequence[Mapping[str, Any]], cannot: Mapping[str, str], skipped: Mapping[str, str]) -> str:
    """The ladder as a table, with what could not be had."""
    table = [["arm", "mean ± std over architectures", "gain on base", "protocol"]]
    for r in rows:
        left = f" (without {', '.join(r['left_out'])})" if r["left_out"] else ""
        gain = r["mean"] - rows[0]["mean"]
        table.append([r["arm"] + left, f"{r['mean']:.5g} ± {r['std']:.2g}", f"{gain:+.4g}", r["protocol_hash"]])
    lines = [f"not possible here: {t}: {why}" for t, why in cannot.items()]
    lines += [f"not run: {arm}, which without these is {same}" for arm, same in skipped.items()]
    return "\n".join([text_table(table), *lines])
