"""A step of a supernet on one path, against a step of the network extracted from it.

Both steps do the same: forward, cross entropy, backward, clip the gradient, SGD with momentum and weight decay. The
supernet's also draws a path, seats it, and updates only what the path used, as ``train_supernet`` does. For each of
several architectures the two take turns on the same batch. Spaces: elastic MobileNet-like networks, whose weights are
slices of the largest, and NAS-Bench-201 cells, whose operations are separate modules.

That only the live path is computed is counted, not timed: convolutions and floating-point operations of a forward pass
are those of the extracted network, and a share of what all options at their largest sizes would take.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import torch
from measure import Figures
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from archipel.core.choice import EVERYTHING, Blend, Choice, Fixed
from archipel.core.decision import Arch, Decision
from archipel.core.supernet import Supernet
from archipel.search.live_update import LiveUpdate
from archipel.search.oneshot.samplers import uniform_paths
from archipel.search.training import loss_of
from archipel.spaces.mobile import mobile_space
from archipel.spaces.module_space import ModuleSpace
from archipel.spaces.nb201 import NB201

SHAPE, CLASSES, BATCH = (1, 28, 28), 10, 64
ARCHITECTURES, REPEATS = 12, 5
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 4e-5}


class Convolutions(TorchDispatchMode):
    """Counts the convolutions that are executed."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def executed(net: nn.Module, x: Tensor) -> tuple[int, int]:
    """Convolutions and floating-point operations of a forward pass."""
    with torch.no_grad():
        with Convolutions() as convolutions:
            net(x)
        with FlopCounterMode(display=False) as flops:
            net(x)
    return convolutions.count, flops.get_total_flops()


def everything(supernet: Supernet) -> Blend:
    """The decider under which all options of every choice are computed, at the largest sizes."""
    weights = {m.decision.name: torch.ones(len(m.options)) for m in supernet.modules() if isinstance(m, Choice)}
    sizes = {d.name: EVERYTHING.value(d) for d in supernet.space.decisions if isinstance(d, Decision)}
    return Blend(weights, lambda options, w, *args: sum(option(*args) for option in options), sizes)


def supernet_step(supernet: Supernet, x: Tensor, y: Tensor) -> Callable[[Arch], None]:
    parameters = list(supernet.parameters())
    optimizer = torch.optim.SGD(parameters, **SGD)
    update = LiveUpdate(supernet, optimizer)
    draw, rng = uniform_paths(supernet.space), Random(1)

    def step(arch: Arch) -> None:
        optimizer.zero_grad(set_to_none=True)
        draw(rng)  # the price of a path is paid, but the path is the one that the extracted network has
        supernet.decider = Fixed(arch)
        loss_of("classification", supernet(x), y).backward()
        update.mark()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        update.step()

    return step


def plain_step(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    parameters = list(net.parameters())
    optimizer = torch.optim.SGD(parameters, **SGD)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of("classification", net(x), y).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()

    return step


def compare(space: ModuleSpace, figures: Figures) -> None:
    """Time both steps for several architectures of a space."""
    x, y = torch.randn(BATCH, *SHAPE), torch.randint(0, CLASSES, (BATCH,))
    supernet = space.supernet(seed=0).train()
    super_step = supernet_step(supernet, x, y)
    rng, clock = Random(0), time.perf_counter
    on_path, extracted, ratios, shares = [], [], [], []
    supernet.decider = everything(supernet)
    all_options = executed(supernet, x)
    for _ in range(ARCHITECTURES):
        arch = space.sample(rng)
        net = supernet.extract(arch).train()
        live, alone = executed(supernet.activate(arch), x), executed(net, x)
        assert live == alone, f"the supernet computes {live}, the network {alone} (convolutions, operations)"
        shares.append(live[1] / all_options[1])
        step = plain_step(net, x, y)
        super_step(arch), step()
        times: list[tuple[float, float]] = []
        for r in range(REPEATS):
            order = 1 if r % 2 else -1
            first, second = (partial(super_step, arch), step)[::order]
            a = clock()
            first()
            b = clock()
            second()
            times.append((b - a, clock() - b)[::order])
        on_path.append(statistics.median(t for t, _ in times))
        extracted.append(statistics.median(t for _, t in times))
        ratios.append(statistics.median(s / e for s, e in times))
    figures.row(f"{space.name}: supernet, one path", [1e3 * t for t in on_path], "ms/step")
    figures.row(f"{space.name}: extracted network", [1e3 * t for t in extracted], "ms/step")
    figures.row(f"{space.name}: operations run, of all options'", [100 * s for s in shares], "%")
    figures.ratio(f"{space.name}: supernet / extracted", ratios, "<= 1.1")


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = {"input": SHAPE, "batch": BATCH, "architectures": ARCHITECTURES, "repeats": REPEATS, "threads": 1}
    figures = Figures("supernet_step", __doc__.splitlines()[0], settings)
    compare(mobile_space(SHAPE, CLASSES), figures)
    compare(NB201(torch.zeros(2, *SHAPE), CLASSES, C=16, N=1), figures)
    figures.save()


if __name__ == "__main__":
    main()
