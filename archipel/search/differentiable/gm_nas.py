"""GM-NAS: split a supernet where operations want different gradients of the weights that they share.

Hu, Wang, Hong, Li, Hsieh, Feng. Generalizing Few-Shot NAS with Gradient Matching. 2022.
https://arxiv.org/abs/2203.15207

    g_o      = dL_train(θ with only o on edge e) / dw        w: all weights but those of edge e itself
    D[o,o']  = mean over R batches and architectures θ of dist(g_o, g_o')
    groups   = the division of e's options in two that minimises the within-group sum of D, i.e. maximises the cut
    edge     = the one with the largest cut;   both groups get a copy of the supernet;  repeated on every level

dist: ``"cos"``, 1 - cos of all shared gradients in one vector; ``"per-filter-cos"``, the sum over output filters of
1 - cos, tensors of one axis (norms, biases) left out; ``"mse"``. Two gradients of zero are alike, a zero one and
another are as different as orthogonal ones. On edge e, o has the weight that a mixture gives it, or 1 on a drawn path.

Few-Shot NAS and random divisions are the untreated arms. Known differences: the published code for the DARTS space
keeps the edge with the smallest within-group distance, which is not the largest cut; it is here as
``edge_score="within"``. A restarted last level begins its learning-rate schedule anew. Choosing among the leaves uses
the architecture's half of the training data, not the validation data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from archipel.core.errors import UsageError, suggest
from archipel.core.registry import Paper, register
from archipel.search.differentiable.darts_pt import Frozen, Uniform
from archipel.search.differentiable.gradient_matching import GradientMatching
from archipel.search.differentiable.perturbation import Perturbation
from archipel.search.differentiable.sampling import BestOfPaths, SampledPaths
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.split_search import SplitSearch
from archipel.search.differentiable.splitting import FewShot, RandomSplit, levels_of

SPLITTERS = ("gradient", "random", "few-shot")
BASES = ("rsps", "darts", "equal")
# Levels at epochs 15 and 30 (reference scripts); the rest of the schedule is that of DARTS.
SCHEDULE = Schedule(epochs=50)


@register(
    "gm-nas",
    card=94,
    family="search.differentiable",
    slots=["schedule"],
    paper=Paper("Generalizing Few-Shot NAS with Gradient Matching", 2022, "https://arxiv.org/abs/2203.15207"),
)
def gm_nas(
    split_epochs: Sequence[int] = (15, 30),
    supernets: int | None = None,
    splitter: str = "gradient",
    base: str = "rsps",
    distance: str = "cos",
    batches: int = 100,
    smallest: int = 2,
    edge_score: str = "cut",
    samples: int = 100,
    tune: int = 10,
    restart: str = "none",
    proposals: int = 1,
    schedule: Schedule | None = None,
    **slots: Any,
) -> SplitSearch:
    """Search in a supernet that is split by gradient matching.

    Args:
        split_epochs: after which epochs; each doubles the supernets.
        supernets: how many there are in the end; a power of 2, by default as ``split_epochs`` says.
        splitter: ``"gradient"``; ``"random"`` halves and ``"few-shot"`` (one split, a supernet for each operation) are
            what it is compared with.
        base: what is trained: ``"rsps"`` (uniform paths, the best of ``samples`` of them is each leaf's answer),
            ``"darts"`` (mixtures of first order), or ``"equal"`` (equal mixtures, whose answer is read off by
            perturbation, as the paper does in the DARTS space). Slots given below replace its parts.
        distance, batches, smallest, edge_score: see
            :class:`~archipel.search.differentiable.gradient_matching.GradientMatching`.
        tune: epochs between two decisions of the perturbation.
        restart, proposals: see :class:`SplitSearch`.
        schedule: 50 epochs of DARTS by default.
        slots: other slots of :class:`DifferentiableSearch`, and ``fixed``.

    Raises:
        UsageError: a setting out of range, or ``supernets`` and ``split_epochs`` that contradict each other.

    >>> len(gm_nas(split_epochs=[2, 4, 6], supernets=8).split_epochs)
    3
    """
    if splitter not in SPLITTERS:
        raise UsageError(f"No splitter {splitter!r}. {suggest(splitter, SPLITTERS)}")
    if base not in BASES:
        raise UsageError(f"No base {base!r} to split. {suggest(base, BASES)}")
    if splitter == "few-shot" and (supernets is not None or len(split_epochs) != 1):
        raise UsageError("Few-shot splits once, into as many supernets as the edge has operations: give one split "
                         "epoch and no supernets.")  # fmt: skip
    if supernets is not None and levels_of(supernets) != len(split_epochs):
        raise UsageError(
            f"{supernets} supernets come from {levels_of(supernets)} splits, but split_epochs has {len(split_epochs)}."
        )
    chosen = {
        "gradient": lambda: GradientMatching(distance, batches, smallest, edge_score),
        "random": lambda: RandomSplit(smallest),
        "few-shot": FewShot,
    }[splitter]()
    parts: dict[str, Any] = {
        "rsps": lambda: {"arch_gradient": SampledPaths(), "select": BestOfPaths(samples)},
        "darts": dict,
        "equal": lambda: {"arch_gradient": Frozen(), "mix": Uniform(), "select": Perturbation(tune)},
    }[base]()
    return SplitSearch(chosen, split_epochs, restart, proposals, schedule=schedule or SCHEDULE, **{**parts, **slots})
