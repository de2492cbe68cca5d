"""Elastic one-dimensional convolutional networks for signals: MNIST-1D, spoken words as log-mel spectra, sensors.

The network of :mod:`archipel.spaces.mobile` with convolutions along time: inverted residuals with linear bottlenecks
(Sandler et al., MobileNetV2, 2018, https://arxiv.org/abs/1801.04381). Channels are whatever the signal has — one for
MNIST-1D, the mel bands of a spectrum. Kernels are longer than for images, since a line of k samples sees k inputs
where a square sees k². Stages halve the time axis until about 4 frames are left.
"""

from __future__ import annotations

from collections.abc import Sequence

from archipel.core.errors import SpaceError
from archipel.spaces.mobile import inverted_residual_space
from archipel.spaces.module_space import ModuleSpace


def signal_space(
    input_shape: Sequence[int],
    classes: int,
    width: int = 16,
    ratios: Sequence[float] = (0.5, 0.75, 1.0),
    depth: tuple[int, int] = (1, 3),
    expand: Sequence[int] = (2, 3, 4),
    kernels: Sequence[int] = (3, 5, 9),
    attention: bool = True,
    stages: int | None = None,
) -> ModuleSpace:
    """The space of one-dimensional MobileNet-like networks; arguments as for images.

    Args:
        input_shape: ``(C, T)``.

    Raises:
        SpaceError: the input is no signal, or is too short for the stages.

    >>> space = signal_space((1, 40), 10)
    >>> space.build(space.sample(__import__("random").Random(0)))(space.example).shape
    torch.Size([2, 10])
    """
    if len(input_shape) != 2:
        raise SpaceError(f"signal: needs signals (C, T), not inputs of shape {tuple(input_shape)}.")
    return inverted_residual_space(
        "signal", 1, input_shape, classes, input_shape[1], 128, width, ratios, depth, expand, kernels, attention, stages
    )
