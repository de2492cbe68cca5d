"""A trunk with two resolutions whose blocks can be left out one by one by a binary mask.

    stem → H (full resolution) → down → L (half resolution)
    unit u     H ← H + a_{2u} · block(H),    L ← L + a_{2u+1} · block(L);   after every second unit L ← L + down(H)
    features   mean over the plane of H and L, side by side

A block that is left out is the identity, so that every mask is a network and the trunk itself always stays.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from archipel.core.errors import UsageError


def _block(C: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))


class MaskedTrunk(nn.Module):
    """``(x [B, channels, H, W], mask [blocks]) -> [B, 2C]``.

    Args:
        channels: of the images.
        C: channels of both branches.
        units: pairs of blocks, one at each resolution.
    """

    def __init__(self, channels: int, C: int = 8, units: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.down = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, 2, 1, bias=False), nn.BatchNorm2d(C))
        self.fusions = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 3, 2, 1, bias=False), nn.BatchNorm2d(C)) for _ in range(units // 2)
        )
        self.blocks = nn.ModuleList(_block(C) for _ in range(2 * units))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """
        Raises:
            UsageError: a mask of another length, or one that is not binary.
        """
        taken = self.checked(mask)
        high = self.stem(x)
        low = self.down(high)
        for u in range(len(self.blocks) // 2):
            high = high + self.blocks[2 * u](high) if taken[2 * u] else high
            low = low + self.blocks[2 * u + 1](low) if taken[2 * u + 1] else low
            if u % 2:
                low = low + self.fusions[u // 2](high)
        return torch.cat([torch.relu(high).mean((2, 3)), torch.relu(low).mean((2, 3))], 1)

    def checked(self, mask: Tensor) -> list[bool]:
        values = mask.flatten().tolist()
        if len(values) != len(self.blocks) or any(v not in (0, 1) for v in values):
            raise UsageError(f"A mask has a 0 or 1 for each of {len(self.blocks)} blocks, not {values}.")
        return [bool(v) for v in values]


class MaskedNet(nn.Module):
    """A masked trunk with a head for each task; ``(x, mask) -> {task: output}``."""

    def __init__(self, trunk: MaskedTrunk, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleDict(heads)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x, mask)
        return {task: head(features) for task, head in self.heads.items()}


class WithMask(nn.Module):
    """A masked net under one mask, for training and exporting; ``x -> {task: output}``."""

    def __init__(self, net: MaskedNet, mask: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.net(x, self.mask)  # type: ignore[arg-type]
