"""Genotypes of NASNet cells: what the controller decides, as objects, as text, and up to relabelling.

Zoph, Vasudevan, Shlens, Le. Learning Transferable Architectures for Scalable Image Recognition. 2017.
https://arxiv.org/abs/1707.07012, section 3

The hidden states of a cell are 0 (output of the cell before the last), 1 (output of the last cell) and 2, 3, ... (its
blocks, in order). A block takes two earlier states, applies an operation to each and adds or concatenates the results.
The output of the cell is the concatenation of all states that no block uses. NASNet-A, as its authors published it,
concatenates two states more than that rule (state 0 of the normal and block state 3 of the reduction cell, which
are used): a genotype may therefore name its output states. All its blocks add.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from archipel.core.errors import SpaceError, suggest
from archipel.nets.nasnet_ops import OPS

COMBINE = ("add", "concat")
_SIGN = {"add": "+", "concat": "&"}
_BLOCK = re.compile(r"(\w+)\((\d+)\)([+&])(\w+)\((\d+)\)")


@dataclass(frozen=True)
class Block:
    """Two operations on two earlier states, and how their results are combined.

    Raises:
        SpaceError: not two states and operations, an unknown operation or combination.
    """

    inputs: tuple[int, int]
    ops: tuple[str, str]
    combine: str = "add"

    def __post_init__(self) -> None:
        if len(self.inputs) != 2 or len(self.ops) != 2:
            raise SpaceError(f"A block has two inputs and two operations, not {self.inputs!r} and {self.ops!r}.")
        for op in self.ops:
            if op not in OPS:
                raise SpaceError(f"NASNet cells have no operation {op!r}. {suggest(op, OPS)}")
        if self.combine not in COMBINE:
            raise SpaceError(f"A block combines by one of {COMBINE}, not {self.combine!r}.")

    def __str__(self) -> str:
        (i, j), (p, q) = self.inputs, self.ops
        return f"{p}({i}){_SIGN[self.combine]}{q}({j})"


@dataclass(frozen=True)
class CellGenotype:
    """The blocks of a cell; ``output`` are the states to concatenate, by default those that no block uses.

    Raises:
        SpaceError: no block, a block that refers to itself or to a later one, or an output that does not exist.

    >>> cell = CellGenotype((Block((0, 1), ("sep3x3", "identity")), Block((2, 1), ("avg3x3", "conv1x1"))))
    >>> cell.unused, cell.output, str(cell)
    ((3,), (3,), 'sep3x3(0)+identity(1) avg3x3(2)+conv1x1(1)')
    """

    blocks: tuple[Block, ...]
    output: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            raise SpaceError("A cell needs at least one block.")
        for b, block in enumerate(self.blocks):
            for i in block.inputs:
                if not 0 <= i < b + 2:
                    raise SpaceError(
                        f"Block {b} ({block}) refers to state {i}, which does not exist yet: states 0 to {b + 1} do."
                    )
        states = range(len(self.blocks) + 2)
        if not self.output:
            object.__setattr__(self, "output", self.unused)
        if not all(i in states for i in self.output) or len(set(self.output)) < len(self.output):
            raise SpaceError(f"The output of a cell is distinct states from 0 to {states[-1]}, not {self.output!r}.")

    @property
    def unused(self) -> tuple[int, ...]:
        """States that no block takes, the cell's inputs included."""
        used = {i for block in self.blocks for i in block.inputs}
        return tuple(i for i in range(len(self.blocks) + 2) if i not in used)

    @property
    def width(self) -> int:
        """Channels of the output in multiples of F; a block that concatenates counts twice."""
        return sum(2 if i >= 2 and self.blocks[i - 2].combine == "concat" else 1 for i in self.output)

    def __str__(self) -> str:
        text = " ".join(map(str, self.blocks))
        return text if self.output == self.unused else f"{text} -> {','.join(map(str, self.output))}"


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell.

    >>> str(parse(str(NASNET_A))) == str(NASNET_A)
    True
    """

    normal: CellGenotype
    reduction: CellGenotype

    def __str__(self) -> str:
        return f"normal: {self.normal}; reduction: {self.reduction}"


def parse(text: str) -> Genotype:
    """The genotype that a text as of ``str(genotype)`` stands for.

    Raises:
        SpaceError: not a normal and a reduction cell, or a malformed block; names it.

    >>> parse("normal: sep3x3(1)+identity(0); reduction: max3x3(0)&sep5x5(1)").reduction.width
    2
    """
    match = re.fullmatch(r"\s*normal:([^;]*);\s*reduction:([^;]*)", text) if isinstance(text, str) else None
    if match is None:
        raise SpaceError(f"A NASNet genotype reads 'normal: BLOCKS; reduction: BLOCKS', not {text!r:.120}.")
    return Genotype(*(_parse_cell(part) for part in match.groups()))


def _parse_cell(text: str) -> CellGenotype:
    body, _, tail = text.partition("->")
    blocks = []
    for word in body.split():
        match = _BLOCK.fullmatch(word)
        if match is None:
            raise SpaceError(f"A block reads like 'sep3x3(1)+identity(0)' ('&' to concatenate), not {word!r}.")
        p, i, sign, q, j = match.groups()
        blocks.append(Block((int(i), int(j)), (p, q), "add" if sign == "+" else "concat"))
    output = [word.strip() for word in tail.split(",")] if tail else []
    if not all(word.isdigit() for word in output):
        raise SpaceError(f"After '->' stand the output states, as in '-> 2,3,4', not {tail.strip()!r}.")
    return CellGenotype(tuple(blocks), tuple(map(int, output)))


def canonical_cell(cell: CellGenotype) -> str:
    """The text of the cell after renumbering its blocks and ordering their operands; equal for isomorphic cells.

    Blocks are sorted by depth and by what they compute. Blocks that compute the same expression are told apart only
    by who uses them: all their orders are tried and the smallest text is taken (those that nobody uses cannot differ).

    >>> a, b = Block((0, 1), ("sep3x3", "max3x3")), Block((1, 1), ("identity", "avg3x3"))
    >>> canonical_cell(CellGenotype((a, b))) == canonical_cell(CellGenotype((b, a)))
    True
    """
    meaning: list[tuple[int, str]] = [(0, "0"), (0, "1")]
    used = {i for block in cell.blocks for i in block.inputs}
    for block in cell.blocks:
        operands = sorted(f"{op}:{meaning[i][1]}" for op, i in zip(block.ops, block.inputs))
        digest = hashlib.sha256(f"{block.combine} {operands}".encode()).hexdigest()[:32]
        meaning.append((1 + max(meaning[i][0] for i in block.inputs), digest))

    def key(i: int) -> tuple[int, str, bool, bool]:
        return (*meaning[i], i in used, i in cell.output)

    groups = [list(g) for _, g in itertools.groupby(sorted(range(2, len(meaning)), key=key), key=key)]
    orders = [itertools.permutations(g) if g[0] in used else [g] for g in groups]
    return min(_renumbered(cell, list(itertools.chain(*order))) for order in itertools.product(*orders))


def _renumbered(cell: CellGenotype, order: Sequence[int]) -> str:
    new = {0: 0, 1: 1, **{old: position + 2 for position, old in enumerate(order)}}
    blocks = []
    for old in order:
        block = cell.blocks[old - 2]
        (p, i), (q, j) = sorted(zip(block.ops, (new[i] for i in block.inputs)))
        blocks.append(Block((i, j), (p, q), block.combine))
    return str(CellGenotype(tuple(blocks), tuple(sorted(new[i] for i in cell.output))))


NASNET_A = parse(
    "normal: sep5x5(1)+sep3x3(0) sep5x5(0)+sep3x3(0) avg3x3(1)+identity(0) avg3x3(0)+avg3x3(0) sep3x3(1)+identity(1)"
    " -> 0,2,3,4,5,6; "
    "reduction: sep5x5(1)+sep7x7(0) max3x3(1)+sep7x7(0) avg3x3(1)+sep5x5(0) identity(3)+avg3x3(2) sep3x3(2)+max3x3(1)"
    " -> 3,4,5,6"
)
