"""A supernet: all networks of a space at once, sharing weights, with a seat for whoever decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from archipel.core.choice import Decider, Fixed, Seat, Undecided
from archipel.core.decision import Arch
from archipel.core.errors import SpaceError
from archipel.core.extract import extract

if TYPE_CHECKING:
    from archipel.core.space import Space


class Supernet(nn.Module):
    """A network with choices, and the space it spans.

    Args:
        net: a module that contains choice modules.
        space: whose architectures it can take on.
    """

    def __init__(self, net: nn.Module, space: Space) -> None:
        super().__init__()
        self.net = net
        self.space = space
        self.seat = Seat()
        for module in net.modules():
            if isinstance(module, Undecided):
                module.seat = self.seat

    @property
    def decider(self) -> Decider:
        return self.seat.decider

    @decider.setter
    def decider(self, decider: Decider) -> None:
        self.seat.decider = decider

    def activate(self, arch: Arch, validate: bool = True) -> Supernet:
        """Compute as the network ``arch`` from now on; only its path is computed.

        Raises:
            SpaceError: ``arch`` is not of the space (not checked with ``validate=False``).
        """
        self.seat.decider = Fixed(self.space.validate(arch) if validate else arch)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)

    def extract(self, arch: Arch) -> nn.Module:
        """The network ``arch`` as a plain module with copies of the shared weights."""
        return extract(self.net, Fixed(self.space.validate(arch)))

    def live_slices(self) -> dict[str, tuple[slice, ...]]:
        """Parameter name -> slices that the active network uses, for every parameter on the active path.

        A parameter that is used whole maps to no slices; one that is not on the path is absent.

        Raises:
            SpaceError: no architecture is active.
        """
        decider = self.seat.decider
        if not isinstance(decider, Fixed):
            raise SpaceError("Live slices need an active architecture; call activate(arch) first.")
        names = {id(m): n for n, m in self.named_modules()}
        out: dict[str, tuple[slice, ...]] = {}

        def visit(module: nn.Module) -> None:
            parameters = module._parameters
            slices = module.live(decider) if isinstance(module, Undecided) else {}
            for name, p in parameters.items():
                if p is not None:
                    out[f"{names[id(module)]}.{name}"] = slices.get(name, ())
            if isinstance(module, Undecided):
                for child, clause in module.branches():
                    if all(decider.arch.get(n) in values for n, values in clause):
                        visit(child)
            else:
                for child in module.children():
                    visit(child)

        visit(self.net)
        return out
