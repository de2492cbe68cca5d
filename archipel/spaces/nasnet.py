"""The NASNet search space: two cells of B blocks, each five decisions.

Zoph, Vasudevan, Shlens, Le. Learning Transferable Architectures for Scalable Image Recognition. 2017.
https://arxiv.org/abs/1707.07012

Block b of either cell: two of the b + 2 states before it, an operation for each (13 of them), and add or concatenate:

    size of a cell = prod_b (b + 2)^2 13^2 2 = 2.287e18 for B = 5;   of the space: its square

In the controller's order: input 1, input 2, operation 1, operation 2, combination; normal cell first. There is no
supernet: which states are unused, and so the width of a cell, differs between architectures.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archipel.core.decision import Arch, Decision
from archipel.core.errors import ShapeError, SpaceError, suggest
from archipel.core.space import Space
from archipel.cost.model import CostModel
from archipel.nets.nasnet import NASNet
from archipel.nets.nasnet_genotype import COMBINE, Block, CellGenotype, Genotype, canonical_cell
from archipel.nets.nasnet_ops import OPS

if TYPE_CHECKING:
    import networkx as nx

CELLS = ("normal", "reduction")


class NASNetSpace(Space):
    """Normal and reduction cells for a stack of cells.

    Args:
        example: a batch of images ``[B, channels, H, W]``; zeros of CIFAR's size if left out.
        classes: of the task.
        B: blocks in each cell.
        ops, combine: a selection of operations and combinations; all of them if left out.
        filters, repeats: F and N of the stack in which cells are compared (the search of the paper: N = 2).
        stack: ``"cifar"`` or ``"imagenet"``.

    Raises:
        SpaceError: no block, or an unknown operation or combination.
        ShapeError: the example is not a batch of images.
        UsageError: a stack that cannot be, see :class:`archipel.nets.nasnet.NASNet`.

    >>> space = NASNetSpace(torch.zeros(1, 1, 8, 8), B=2, ops=["identity", "sep3x3", "max3x3"], repeats=1)
    >>> space.size == (2**2 * 3**2 * 3**2 * 3**2 * 2**2) ** 2
    True
    """

    name = "nasnet"

    def __init__(
        self,
        example: Tensor | None = None,
        classes: int = 10,
        B: int = 5,
        ops: Sequence[str] = tuple(OPS),
        combine: Sequence[str] = COMBINE,
        filters: int = 32,
        repeats: int = 2,
        stack: str = "cifar",
    ) -> None:
        images = torch.zeros(1, 3, 32, 32) if example is None else example
        if images.ndim != 4:
            raise ShapeError(f"NASNets take images [B, C, H, W], not {tuple(images.shape)}.")
        if not isinstance(B, int) or B < 1:
            raise SpaceError(f"A NASNet cell needs at least one block, not B={B!r}.")
        for op in ops:
            if op not in OPS:
                raise SpaceError(f"NASNet cells have no operation {op!r}. {suggest(str(op), OPS)}")
        if not set(combine) <= set(COMBINE):
            raise SpaceError(f"Blocks combine by some of {COMBINE}, not {tuple(combine)!r}.")
        self.B = B
        self.example = images
        self.network = partial(NASNet, in_channels=images.shape[1], classes=classes, filters=filters,
                               repeats=repeats, stack=stack)  # fmt: skip
        decisions: list[Decision] = []
        for cell, b in itertools.product(CELLS, range(B)):
            options = {"in1": range(b + 2), "in2": range(b + 2), "op1": ops, "op2": ops, "combine": combine}
            decisions += [Decision(f"{cell}.{b}.{what}", tuple(values)) for what, values in options.items()]
        super().__init__(decisions)
        self._cost: CostModel | None = None
        self.build_meta({d.name: d.options[0] for d in decisions})  # the stack's own checks, before any search

    def genotype(self, arch: Mapping[str, Any]) -> Genotype:
        """The cells of an architecture.

        Raises:
            SpaceError: it is not of this space.
        """
        a = self.validate(arch)
        cells = []
        for cell in CELLS:
            blocks = []
            for at in (f"{cell}.{b}" for b in range(self.B)):
                inputs, ops = (a[f"{at}.in1"], a[f"{at}.in2"]), (a[f"{at}.op1"], a[f"{at}.op2"])
                blocks.append(Block(inputs, ops, a[f"{at}.combine"]))
            cells.append(CellGenotype(tuple(blocks)))
        return Genotype(*cells)

    def arch_of(self, genotype: Genotype) -> Arch:
        """The architecture of a genotype.

        Raises:
            SpaceError: its cells have other numbers of blocks, operations that were not selected, or an output other
                than the unused states (as the published NASNet-A has), which no architecture of the space names.
        """
        arch: Arch = {}
        for name, cell in zip(CELLS, (genotype.normal, genotype.reduction)):
            if cell.output != cell.unused:
                raise SpaceError(f"The {name} cell puts out states {cell.output}; its unused ones are {cell.unused}.")
            for b, block in enumerate(cell.blocks):
                values = (*block.inputs, *block.ops, block.combine)
                arch.update(zip([f"{name}.{b}.{what}" for what in ("in1", "in2", "op1", "op2", "combine")], values))
        return self.validate(arch)

    def canonical(self, arch: Arch) -> str:
        """Equal for cells that differ in the numbering of blocks or the order of operands only."""
        genotype = self.genotype(arch)
        return f"normal: {canonical_cell(genotype.normal)}; reduction: {canonical_cell(genotype.reduction)}"

    @property
    def cost(self) -> CostModel:
        """Exact parameters and MACs of this space's networks."""
        if self._cost is None:
            self._cost = CostModel(self.build_meta, self.example, key=self.canonical)
        return self._cost

    def build_meta(self, arch: Arch) -> NASNet:
        """The network on the meta device: shapes without memory."""
        genotype = self.genotype(arch)
        with torch.device("meta"):
            return self.network(genotype)

    def build(self, arch: Arch, seed: int = 0) -> nn.Module:
        genotype = self.genotype(arch)
        with torch.random.fork_rng(devices=[]), torch.device(self.example.device):
            torch.manual_seed(seed)
            return self.network(genotype)

    def graph(self, arch: Arch) -> nx.DiGraph:
        """Both cells, each with its two inputs, its operations, its blocks and its output."""
        import networkx as nx

        genotype = self.genotype(arch)
        g = nx.DiGraph(name=self.name)
        for name, cell in zip(CELLS, (genotype.normal, genotype.reduction)):
            for i, label in enumerate(("h[i-2]", "h[i-1]")):
                g.add_node(f"{name}.{i}", label=label, cell=name)
            g.add_node(f"{name}.output", label="concatenate", cell=name)
            for b, block in enumerate(cell.blocks):
                target = f"{name}.{b + 2}"
                g.add_node(target, label=block.combine, cell=name)
                for side, (i, op) in enumerate(zip(block.inputs, block.ops), start=1):
                    node = f"{name}.{b}.op{side}"
                    g.add_node(node, label=op, cell=name)
                    g.add_edges_from([(f"{name}.{i}", node), (node, target)])
            g.add_edges_from((f"{name}.{i}", f"{name}.output") for i in cell.output)
        return g
