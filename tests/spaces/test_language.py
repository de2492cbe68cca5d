"""The space of small language models."""

from __future__ import annotations

from random import Random

import pytest
import torch

from archipel.core.errors import SpaceError
from archipel.data.dataset import Split
from archipel.search.training import Recipe, evaluate, train
from archipel.spaces.language import Attention, language_space

SPACE = language_space((12,), 7, widths=[16, 32], depth=(0, 2), head=8)


@pytest.mark.parametrize("mixer", ["attention", "conv"])
def test_no_token_sees_a_later_one(mixer):
    arch = {"width": 32, "depth": 2}
    for b in range(2):
        arch |= {f"block{b}.mixer": mixer, f"block{b}.expand": 2}
        if mixer == "conv":
            arch[f"block{b}.kernel"] = 9
    net = SPACE.build(SPACE.validate(arch)).eval()
    ids = torch.randint(0, 7, (3, 12), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 8:] = (other[:, 8:] + 1) % 7
    with torch.no_grad():
        torch.testing.assert_close(net(ids)[:, :8], net(other)[:, :8])
        assert not torch.allclose(net(ids)[:, 8:], net(other)[:, 8:])


def test_shorter_texts_are_accepted():
    net = SPACE.build(SPACE.sample(Random(0)))
    assert net(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 7)


def test_attention_is_softmax_of_products_over_the_past():
    layer = Attention(16, head=8)
    x = torch.randn(2, 5, 16)
    heads = lambda t: t.view(2, 5, 2, 8).transpose(1, 2)  # noqa: E731
    q, k, v = heads(layer.query(x)), heads(layer.key(x)), heads(layer.value(x))
    scores = (q @ k.transpose(-1, -2)) / 8**0.5
    scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    expected = layer.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(layer(x), expected)


def test_a_kernel_is_decided_only_for_convolutions():
    arch = SPACE.validate({"width": 16, "depth": 1, "block0.mixer": "attention", "block0.expand": 2})
    assert "block0.kernel" not in arch
    with pytest.raises(SpaceError, match=r"'block0.kernel' is missing"):
        SPACE.validate({**arch, "block0.mixer": "conv"})


def test_it_learns_to_copy_the_token_before():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 7, (256, 12), generator=generator)
    target = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], dim=1)
    data = Split(ids, target)
    for mixer in ("attention", "conv"):
        arch = {"width": 32, "depth": 1, "block0.mixer": mixer, "block0.expand": 2}
        if mixer == "conv":
            arch["block0.kernel"] = 3
        net = SPACE.build(SPACE.validate(arch))
        train(net, data, "language", Recipe(epochs=25, batch_size=32, lr=1e-2), seed=0)
        assert evaluate(net, data, "language")["accuracy"] > 0.95, mixer


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 8, 8), {}, r"needs token ids \(T,\)"),
        ((8,), {"widths": [20], "head": 16}, "must be multiples of the head size 16"),
        ((8,), {"mixers": ["gru"]}, "mixer 'gru' is unknown"),
        ((8,), {"depth": (2, 1)}, "depth must be"),
    ],
)
def test_options_that_make_no_model_are_refused(shape, options, message):
    with pytest.raises(SpaceError, match=message):
        language_space(shape, 7, **options)
