"""A network of stages as a differentiable function of what stands in its blocks and of how many there are.

    block    y_b = Σ_c α_bc · block_c(y_(b-1))            the operations of a block share its weights
    stage    y = Σ_d β_d · y_d                            a depth is the output of so many blocks

With one-hot α and β that is the network, exactly. Batch norms use the statistics of the batch, as every operation has
its own, and the weights are held. The costs that go with it are counted from the space, given as a table, or measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archipel.core.choice import Depth, Fixed
from archipel.core.errors import SpaceError
from archipel.core.extract import extract
from archipel.core.supernet import Supernet
from archipel.cost.latency import measure_latency
from archipel.cost.table import CostTable, index_matrix
from archipel.search.differentiable.stage_costs import StageCosts
from archipel.spaces.hardcore import HardCoReNet, HardCoReSpace

Table = Mapping[str, Any]


def network_of(supernet: Supernet) -> HardCoReNet:
    net = supernet.net
    assert isinstance(net, HardCoReNet)
    return net


def blended(
    supernet: Supernet,
    space: HardCoReSpace,
    alpha: Sequence[Tensor],
    beta: Sequence[Tensor],
    x: Tensor,
    everything: bool = False,
) -> Tensor:
    """The output under weights of operations and depths.

    Args:
        alpha: ``[C]`` for each block, those of the first stage first.
        beta: ``[N]`` for each stage.
        everything: also what has weight zero is computed, for its gradient.
    """
    net, now = network_of(supernet), {}
    supernet.decider = Fixed(now)
    x = net.stem(x)
    rows = iter(alpha)
    for s, (stage, b) in enumerate(zip(net.stages, beta)):
        assert isinstance(stage, Depth)
        by_depth = dict(zip(space.depths, b.unbind()))
        deepest = max(d for d, w in by_depth.items() if everything or w != 0)
        total: Tensor | None = None
        for position, block in enumerate(stage.blocks):
            weights = next(rows)
            if position < deepest:
                x = _mixed(block, space, s, position, weights, x, now, everything)
                w = by_depth.get(position + 1)
                if w is not None and (everything or w != 0):
                    total = w * x if total is None else torch.addcmul(total, w, x)
        assert total is not None  # the weights of depths sum to 1
        x = total
    return net.head(x)


def _mixed(
    block: nn.Module,
    space: HardCoReSpace,
    stage: int,
    position: int,
    weights: Tensor,
    x: Tensor,
    now: dict[str, Any],
    everything: bool,
) -> Tensor:
    total: Tensor | None = None
    for c, w in enumerate(weights.unbind()):
        if everything or w != 0:
            now.update(space.values(stage, position, c))
            y = block(x)
            total = w * y if total is None else torch.addcmul(total, w, y)
    assert total is not None  # the weights of operations sum to 1
    return total


# --- costs ---------------------------------------------------------------------------------------------------------


def counted_costs(space: HardCoReSpace, metric: str) -> StageCosts:
    """What operations cost in parameters or MACs. Of blocks that are always there, only differences are known; their
    cheapest operation counts as 0 and the rest is fixed."""
    table, C, D = CostTable.of(space, metric), len(space.operations), space.depths[-1]
    deep = [[0] * D for _ in range(space.stages)]

    def cost(archs: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
        return table.batch(index_matrix(space, [space.arch_of(a) for a in archs])).astype(float)

    def with_stage(s: int, ops: Sequence[int]) -> list[Sequence[int]]:
        return [ops if k == s else rest for k, rest in enumerate(deep)]

    tables, saved = [], 0.0
    for s in range(space.stages):
        t = np.empty((D, C))
        by_depth = dict(zip(space.depths, cost([with_stage(s, [0] * d) for d in space.depths])))
        for b in range(D):
            t[b] = cost([with_stage(s, [c if k == b else 0 for k in range(D)]) for c in range(C)])
            t[b] -= t[b].min() if b < space.depths[0] else t[b, 0] - (by_depth[b + 1] - by_depth[b])
        saved += float(t[:, 0].sum())
        tables.append(t)
    return StageCosts(tables, [space.depths] * space.stages, float(cost([deep])[0]) - saved, f" {metric}")


def given_costs(space: HardCoReSpace, table: Table, unit: str = "") -> StageCosts:
    """What operations cost by a table: block (``"stage0.1"``) -> label (``"e3k5se"``) -> cost; ``"fixed"`` -> t_0.

    Raises:
        SpaceError: an entry is missing; names it.
    """
    tables = []
    for s in range(space.stages):
        rows = []
        for b in range(space.depths[-1]):
            entries = table.get(f"stage{s}.{b}", {})
            for o in space.operations:
                if not isinstance(entries.get(o.label), int | float):
                    raise SpaceError(
                        f"The cost table has no number for operation {o.label!r} of block 'stage{s}.{b}'. It needs "
                        f"{', '.join(o.label for o in space.operations)} for each block."
                    )
            rows.append([float(entries[o.label]) for o in space.operations])
        tables.append(np.array(rows))
    return StageCosts(tables, [space.depths] * space.stages, float(table.get("fixed", 0.0)), unit)


def measured_costs(space: HardCoReSpace, runs: int = 30) -> StageCosts:
    """Milliseconds of every operation in every block, alone and for one input; t_0 is what is left of a whole network.

    Latencies of networks differ from the sum by what running one layer after the other saves or costs.
    """
    supernet = space.supernet().eval()
    net, inputs = network_of(supernet), {}
    heaviest = space.heaviest()
    supernet.activate(heaviest)
    hooks = []
    for s, stage in enumerate(net.stages):
        assert isinstance(stage, Depth)
        for b, block in enumerate(stage.blocks):
            hooks.append(block.register_forward_pre_hook(lambda m, args, at=(s, b): inputs.update({at: args[0]})))
    with torch.no_grad():
        net(torch.zeros_like(space.example[:1]))
    for hook in hooks:
        hook.remove()
    tables = []
    for s, stage in enumerate(net.stages):
        assert isinstance(stage, Depth)
        rows = []
        for b, block in enumerate(stage.blocks):
            plain = [extract(block, Fixed(space.values(s, b, c))).eval() for c in range(len(space.operations))]
            rows.append([measure_latency(m, inputs[s, b], runs=runs).median_ms for m in plain])
        tables.append(np.array(rows))
    whole = measure_latency(supernet.extract(heaviest).eval(), space.example, runs=runs).median_ms
    fixed = max(0.0, whole - sum(float(t[:, -1].sum()) for t in tables))
    return StageCosts(tables, [space.depths] * space.stages, fixed, " ms")
