"""A network for several tasks whose layers are shared by groups of tasks: a tree of branches.

The groups of a layer refine those of the layer before; a group's layer is computed once, whatever number of tasks it
serves, and each task ends in a head of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from archipel.core.errors import UsageError

Partition = tuple[int, ...]


class BranchedNet(nn.Module):
    """A tree of layers; ``[N, …] -> {task: output}``.

    Args:
        tree: for each layer, the number of each task's group.
        tasks: names, in the tree's order.
        stem: shared by all.
        layer: ``layer(index)`` makes one copy of a layer.
        heads: task -> its last module.

    Raises:
        UsageError: groups that merge again, or a tree for another number of tasks.
    """

    def __init__(
        self,
        tree: Sequence[Partition],
        tasks: Sequence[str],
        stem: nn.Module,
        layer: Callable[[int], nn.Module],
        heads: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        self.tasks, self.tree = tuple(tasks), [tuple(p) for p in tree]
        for index, groups in enumerate(self.tree):
            if len(groups) != len(self.tasks):
                raise UsageError(f"Layer {index} groups {len(groups)} tasks, but there are {len(self.tasks)}.")
            before = self.tree[index - 1] if index else (0,) * len(groups)
            if len(set(zip(before, groups))) > len(set(groups)):
                raise UsageError(f"Layer {index} merges tasks that have split before: {before} then {groups}.")
        self.stem = stem
        self.layers = nn.ModuleList(
            nn.ModuleList(layer(index) for _ in range(len(set(groups)))) for index, groups in enumerate(self.tree)
        )
        self.heads = nn.ModuleDict({t: heads[t] for t in self.tasks})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = {0: self.stem(x)}
        before: Partition = (0,) * len(self.tasks)
        for copies, groups in zip(self.layers, self.tree):
            origin = dict(zip(groups, before))  # group -> the group it comes from
            features = {group: copies[group](features[origin[group]]) for group in sorted(origin)}
            before = groups
        return {t: self.heads[t](features[group]) for t, group in zip(self.tasks, before)}

    @property
    def branches(self) -> list[int]:
        """Copies of each layer that are computed."""
        return [len(set(groups)) for groups in self.tree]
