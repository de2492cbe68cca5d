"""Layers whose numbers of bits are decisions: the mixed-precision block of single path one-shot search.

Guo et al. Single Path One-Shot Neural Architecture Search with Uniform Sampling. 2019.
https://arxiv.org/abs/1904.00420
Weights: Zhou et al., DoReFa-Net, 2016, https://arxiv.org/abs/1606.06160. Activations: Choi et al., PACT, 2018,
https://arxiv.org/abs/1805.06085.

    weights      1 bit: sign(w) mean|w|;   b bits: s (2 Q(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1),  s = max|w|
    activations  Q of x clipped to [0, a] (or to [-a, a] if signed), with a learned clip a
    Q            rounds to 2^b - 1 equal steps on [0, 1]; its gradient is that of the identity

All precisions share one float weight, quantised on the fly; each number of activation bits has a clip of its own, since
only what is on the drawn path may learn. DoReFa leaves weights in [-1, 1]; we scale them back to their range, which is
the same network wherever batch norm follows. 32 bits mean no quantisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archipel.core.choice import Decider, Extract, Size, Undecided
from archipel.core.counting import Clause
from archipel.core.decision import Decision
from archipel.core.errors import SpaceError
from archipel.spaces.layers import ElasticConv2d, ElasticLinear

# Precisions of the paper's search, as (weight bits, activation bits).
PRECISIONS = ((1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4))
FLOAT = 32


def straight_through(rounded: Tensor, x: Tensor) -> Tensor:
    """Exactly ``rounded``, with the gradient of ``x``."""
    return rounded.detach() + (x - x.detach())


def quantise_weight(w: Tensor, bits: int) -> Tensor:
    """A weight with ``2^bits`` values of equal distance.

    >>> quantise_weight(torch.tensor([-1.0, -0.1, 0.2, 1.0]), 1)
    tensor([-0.5750, -0.5750,  0.5750,  0.5750])
    """
    if bits >= FLOAT:
        return w
    if bits == 1:
        scale = w.detach().abs().mean()
        return straight_through(torch.where(w < 0, -scale, scale), w)
    steps = 2**bits - 1
    squashed = torch.tanh(w)
    unit = squashed / (2.0 * squashed.detach().abs().max().clamp_min(1e-12)) + 0.5
    return w.detach().abs().max() * (2.0 * straight_through((unit * steps).round() / steps, unit) - 1.0)


def quantise_activation(x: Tensor, bits: int, clip: Tensor, signed: bool = False) -> Tensor:
    """Activations clipped to ``[0, clip]`` (or ``[-clip, clip]``), in ``2^bits - 1`` steps; the clip learns.

    >>> quantise_activation(torch.tensor([-1.0, 0.4, 0.9, 5.0]), 2, torch.tensor(3.0))
    tensor([0., 0., 1., 3.])
    """
    if bits >= FLOAT:
        return x
    steps = 2**bits - 1
    clip = clip.clamp_min(1e-4)
    low = -clip if signed else torch.zeros_like(clip)
    # PACT: where x is cut at the clip, its gradient goes to the clip.
    bounded = torch.minimum(torch.maximum(x, low), clip)
    with torch.no_grad():
        span = clip - low
        rounded = low + span * ((bounded - low) / span * steps).round() / steps
    return straight_through(rounded, bounded)


def label(weight_bits: int, activation_bits: int) -> str:
    """How a precision is written in an architecture, such as ``"w2a4"``."""
    return f"w{weight_bits}a{activation_bits}"


def bits_of(precision: str) -> tuple[int, int]:
    """Weight and activation bits of a label."""
    weight, activation = precision[1:].split("a")
    return int(weight), int(activation)


class Precision(Decision):
    """A decided precision of weights and activations; the same name elsewhere is the same decision.

    >>> Precision("bits", [(1, 2), (4, 4)]).options
    ('w1a2', 'w4a4')
    """

    def __init__(self, name: str, precisions: Sequence[tuple[int, int]] = PRECISIONS) -> None:
        for pair in precisions:
            if len(pair) != 2 or not all(isinstance(b, int) and 1 <= b <= FLOAT for b in pair):
                raise SpaceError(f"Precision {name!r} needs pairs of bits from 1 to {FLOAT}, not {pair!r}.")
            if pair[1] == 1:
                raise SpaceError(f"Precision {name!r}: activations need at least 2 bits, not 1.")
        super().__init__(name, [label(*pair) for pair in sorted(precisions)])


class Clip(nn.Module):
    """Quantises activations to a number of bits, up to a learned clip."""

    def __init__(self, bits: int, start: float, signed: bool) -> None:
        super().__init__()
        self.bits, self.start, self.signed = bits, start, signed
        self.clip = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.clip, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return quantise_activation(x, self.bits, self.clip, self.signed)


class _Quantised(Undecided):
    """What quantised layers share: the decision, and one clip for each number of activation bits."""

    precision: Precision
    clips: nn.ModuleDict

    def _set_precision(self, precision: Precision, clip: float, signed: bool) -> None:
        self.precision = precision
        depths = sorted({bits_of(str(o))[1] for o in precision.options})
        self.clips = nn.ModuleDict({str(b): Clip(b, clip, signed) if b < FLOAT else nn.Identity() for b in depths})

    def branches(self) -> Iterator[tuple[nn.Module, Clause]]:
        for bits, clip in self.clips.items():
            using = frozenset(o for o in self.precision.options if bits_of(str(o))[1] == int(bits))
            yield clip, frozenset([(self.precision.name, using)])

    def _quantise(self, x: Tensor, weight: Tensor, decider: Decider) -> tuple[Tensor, Tensor]:
        w_bits, a_bits = bits_of(decider.value(self.precision))
        return self.clips[str(a_bits)](x), quantise_weight(weight, w_bits)

    def _fixed(self, plain: nn.Module, decider: Decider, inner: Extract) -> nn.Module:
        w_bits, a_bits = bits_of(decider.value(self.precision))
        return FixedPrecision(plain, inner(self.clips[str(a_bits)]), w_bits, a_bits)


class QuantisedLinear(_Quantised, ElasticLinear):
    """Elastic linear layer of decided precision; ``[..., in] -> [..., out]``.

    Args:
        in_features, out_features: sizes.
        precision: the decision.
        clip: where the activation clips start.
        signed: whether inputs may be negative (no ReLU before).
    """

    def __init__(
        self, in_features: Size, out_features: Size, precision: Precision, bias: bool = True, clip: float = 6.0,
        signed: bool = False,
    ) -> None:  # fmt: skip
        ElasticLinear.__init__(self, in_features, out_features, bias)
        self._set_precision(precision, clip, signed)

    def own_decisions(self) -> list[Decision]:
        return [*ElasticLinear.own_decisions(self), self.precision]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._now(self.seat.decider)
        x, weight = self._quantise(x, weight, self.seat.decider)
        return F.linear(x, weight, bias)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        plain = ElasticLinear.extract(self, decider, inner)
        return self._fixed(plain, decider, inner)


class QuantisedConv2d(_Quantised, ElasticConv2d):
    """Elastic 2-D convolution of decided precision; arguments as :class:`QuantisedLinear` and ``ElasticConv2d``."""

    def __init__(
        self, in_channels: Size, out_channels: Size, precision: Precision, kernel: Size = 3, stride: int = 1,
        depthwise: bool = False, bias: bool = False, clip: float = 6.0, signed: bool = False,
    ) -> None:  # fmt: skip
        ElasticConv2d.__init__(self, in_channels, out_channels, kernel, stride, depthwise=depthwise, bias=bias)
        self._set_precision(precision, clip, signed)

    def own_decisions(self) -> list[Decision]:
        return [*ElasticConv2d.own_decisions(self), self.precision]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias, padding, groups = self._now(self.seat.decider)
        x, weight = self._quantise(x, weight, self.seat.decider)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, groups)

    def extract(self, decider: Decider, inner: Extract) -> nn.Module:
        plain = ElasticConv2d.extract(self, decider, inner)
        return self._fixed(plain, decider, inner)


class FixedPrecision(nn.Module):
    """A plain linear or convolutional layer of one precision: what a quantised layer is once decided."""

    def __init__(self, layer: nn.Module, clip: nn.Module, weight_bits: int, activation_bits: int) -> None:
        super().__init__()
        self.layer, self.clip = layer, clip
        self.weight_bits, self.activation_bits = weight_bits, activation_bits

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(x)
        w, layer = quantise_weight(self.layer.weight, self.weight_bits), self.layer  # type: ignore[arg-type]
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, w, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, w, layer.bias)  # type: ignore[arg-type]


@torch.no_grad()
def bit_operations(net: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one input, each times its weight bits and activation bits (float layers: 32 x 32).

    Args:
        net: an extracted network, on any device.
        example: a batch of inputs, of which the first counts; on the same device.
    """
    total, handles = 0, []

    def count(layer: nn.Module, bits: int) -> None:
        def after(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal total
            weight: Tensor = layer.weight  # type: ignore[assignment]
            positions = output.numel() // output.shape[1 if weight.ndim > 2 else -1]
            total += positions * weight.numel() * bits

        handles.append((fixed.get(id(layer), layer)).register_forward_hook(after))

    fixed: dict[int, nn.Module] = {id(m.layer): m for m in net.modules() if isinstance(m, FixedPrecision)}
    for m in net.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            outer = fixed.get(id(m))
            bits = outer.weight_bits * outer.activation_bits if isinstance(outer, FixedPrecision) else FLOAT * FLOAT
            count(m, bits)
    was_training = net.training
    net.eval()
    try:
        net(example[:1])
    finally:
        for handle in handles:
            handle.remove()
        net.train(was_training)
    return total
