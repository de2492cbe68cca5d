"""DARTSformer: searched reversible Transformers; gradients, memory, space and schedule."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from random import Random

import pytest
import torch
import torch.nn.functional as F

from archipel.core.errors import ShapeError, SpaceError, UsageError
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.nets.reversible import ReversibleStack
from archipel.nets.sequence_ops import DynamicConv, SequenceAttention, sequence_operations
from archipel.search.differentiable import DifferentiableSearch, FirstOrder, Schedule, SecondOrder
from archipel.search.differentiable.arch_gradient import gradients
from archipel.search.differentiable.dartsformer import ArgmaxOfAll, InverseSqrt, SmoothedCrossEntropy, dartsformer
from archipel.search.differentiable.diagnostics import saved_bytes
from archipel.search.differentiable.parameters import Moment
from archipel.search.strategy import Context, Problem
from archipel.search.training import Recipe
from archipel.spaces.reversible_transformer import SearchedStack, reversible_transformer_space

torch.set_num_threads(1)

T, TOKENS = 6, 5
QUICK = InverseSqrt(epochs=2, batch_size=8, lr=1e-2, rise=2, alpha_lr=0.05)


def texts(n: int = 16, seed: int = 0, length: int = T) -> Split:
    x = torch.randint(0, TOKENS, (n, length), generator=torch.Generator().manual_seed(seed))
    return Split(x, x.flip(1))


def context(data: Split | None = None, **kw) -> Context:
    return Context(Dataset("reverse", data or texts(), texts(seed=1), None, "language", TOKENS), Recipe(epochs=1), **kw)


def space(**kw):
    return reversible_transformer_space((T,), TOKENS, **{"d": 8, "embed": 4, "layers": 1, "heads": 2, **kw})


def state_of(made, dtype=torch.float32, **slots):
    search = DifferentiableSearch(schedule=QUICK, **slots)
    search.setup(Problem(made))
    state = search.start(context())
    state.supernet.to(dtype)
    for p in state.logits.values():
        p.data = torch.randn(len(p), generator=torch.Generator().manual_seed(len(p)), dtype=dtype)
    return state


def stacks(state) -> list[SearchedStack]:
    return [m for m in state.supernet.modules() if isinstance(m, SearchedStack)]


# --- gradients and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_gradients_of_weights_and_architecture_equal_ordinary_backpropagation(dtype, limit, dropout):
    state = state_of(space(layers=2, dropout=dropout), dtype)
    state.supernet.train()
    data, found = texts(4), {}
    for reconstruct in (True, False):
        for stack in stacks(state):
            stack.reconstruct = reconstruct
        torch.manual_seed(3)
        tensors = {**state.weights, **state.logits}
        found[reconstruct] = gradients(state.val_loss((data.x, data.y)), tensors)
    assert set(found[True]) == set(found[False]) >= {"enc0.g0", "enc0.g1", "enc1.g0", "enc1.g1"}
    scale = max(float(g.norm()) for g in found[False].values())
    for name, g in found[False].items():
        # A key's bias shifts all scores of a query alike and has no gradient but rounding.
        assert float((found[True][name] - g).norm()) < limit * max(float(g.norm()), 1e-3 * scale), name


def test_a_decoder_gives_its_gradients_to_the_encoder():
    made = reversible_transformer_space((8,), TOKENS, d=12, embed=4, layers=1, heads=2, source=4, dropout=0.1)
    state = state_of(made, torch.float64)
    x, found = texts(4, length=8).x, {}
    for reconstruct in (True, False):
        for stack in stacks(state):
            stack.reconstruct = reconstruct
        torch.manual_seed(3)
        loss = state.output(x, state.mixture_weights()).sin().sum()
        found[reconstruct] = gradients(loss, {**state.weights, **state.logits})
    assert {"enc0.g0", "dec0.g0", "dec0.g1"} <= set(found[True]) == set(found[False])
    assert "dec0.g2" not in state.logits  # always cross-attention
    for name, g in found[False].items():
        torch.testing.assert_close(found[True][name], g, rtol=1e-8, atol=1e-10)


def test_what_a_search_keeps_is_flat_in_depth():
    data, flat, linear = texts(4), [], []
    for repeats in (1, 2, 4):
        state = state_of(space(repeats=repeats))
        for reconstruct, out in ((True, flat), (False, linear)):
            for stack in stacks(state):
                stack.reconstruct = reconstruct
            out.append(saved_bytes(partial(state.val_loss, (data.x, data.y)), state.supernet))
    assert flat[0] == flat[1] == flat[2]
    steps = [b - a for a, b in pairwise(linear)]
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.02)
    assert linear[0] > 5 * flat[0]


def test_the_decider_of_the_forward_pass_decides_in_the_backward_pass():
    state = state_of(space(dropout=0.0), torch.float64)
    x = texts(2).x
    arch = {"enc0.g0": "ffn", "enc0.g1": "glu"}
    expected = gradients(state.output(x, state.mixture_weights()).sin().sum(), state.logits)
    loss = state.output(x, state.mixture_weights()).sin().sum()
    state.supernet.activate(arch)
    found = gradients(loss, state.logits)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    assert state.supernet.decider.arch == arch  # and is gone afterwards


def test_options_without_weight_are_never_computed():
    state = state_of(space())
    called = []
    for name, row in state.parameters.rows.items():
        for label, op in zip(row.labels, row.modules[0].blended):
            op.register_forward_hook(lambda *_, label=f"{name}={label}": called.append(label))
    mixture = {n: torch.zeros(len(w)) for n, w in state.mixture_weights().items()}
    mixture["enc0.g0"][state.parameters.rows["enc0.g0"].labels.index("glu")] = 0.5
    mixture["enc0.g0"][state.parameters.rows["enc0.g0"].labels.index("ffn")] = 0.5
    mixture["enc0.g1"][state.parameters.rows["enc0.g1"].labels.index("zero")] = 1.0
    state.output(texts(2).x, mixture).sum().backward()
    assert set(called) == {"enc0.g0=glu", "enc0.g0=ffn", "enc0.g1=zero"}
    assert called.count("enc0.g0=glu") == 2  # forwards, and once more backwards


# --- the space -----------------------------------------------------------------------------------------------------


def test_the_space_has_its_golden_size():
    made = reversible_transformer_space((8,), TOKENS, d=48, embed=4, source=4)
    assert made.size == 13**4 * 14**4 == 1_097_199_376
    assert len(made.by_name["enc0.g0"].options) == 13
    assert set(made.by_name["dec0.g0"].options) - set(made.by_name["enc0.g0"].options) == {"cross_attention"}
    assert reversible_transformer_space((8,), TOKENS).size == 13**4


def test_zero_everywhere_leaves_the_input_as_it_is():
    state = state_of(space(layers=2))
    (stack,) = stacks(state)
    x = torch.randn(2, T, 8)
    state.supernet.activate(dict.fromkeys(state.logits, "zero"))
    assert torch.equal(stack(x), x)
    mass_on_zero = {n: (torch.arange(13) == row.labels.index("zero")) * 1.0 for n, row in state.parameters.rows.items()}
    state.output(texts(2).x, mass_on_zero)
    assert torch.equal(stack(x), x)


def test_a_part_passes_its_own_change_on_unchanged_while_all_mass_is_on_zero():
    state = state_of(space(d=12, splits=3, heads=2))
    (stack,) = stacks(state)
    state.supernet.activate(dict.fromkeys(state.logits, "zero"))
    x, change = torch.randn(2, T, 12), torch.zeros(2, T, 12)
    change[..., 4:8] = 1.0
    torch.testing.assert_close(stack(x + change) - stack(x), change)


def test_one_hot_weights_compute_the_extracted_network():
    state = state_of(space(layers=2, repeats=2))
    state.supernet.eval()
    x = texts(3).x
    for seed in range(4):
        arch = state.supernet.space.sample(Random(seed))
        net = state.supernet.extract(arch)
        with torch.no_grad():
            blended = state.output(x, state.parameters.one_hot(arch))
            torch.testing.assert_close(blended, net(x), rtol=0, atol=1e-6)
        (plain,) = [m for m in net.modules() if isinstance(m, ReversibleStack)]
        assert not plain.reconstruct
        assert not isinstance(plain, SearchedStack)


@pytest.mark.parametrize("name", sequence_operations(8, 2, memory=6))
@pytest.mark.parametrize("causal", [False, True])
def test_operations_keep_the_shape_and_causal_ones_see_no_later_position(name, causal):
    torch.manual_seed(0)
    op = sequence_operations(8, 2, causal, memory=6)[name]().eval()
    h, memory = torch.randn(2, 20, 8), torch.randn(2, 3, 6)
    extra = (memory,) if name == "cross_attention" else ()
    later = h.clone()
    later[:, 12:] += 1.0
    with torch.no_grad():
        y, moved = op(h, *extra), op(later, *extra)
    assert y.shape == h.shape
    local = name in ("glu", "ffn", "identity", "cross_attention")
    assert torch.equal(y[:, :12], moved[:, :12]) == (causal or local)


def test_dynamic_convolution_by_hand():
    torch.manual_seed(0)
    op, h = DynamicConv(4, 3, 2, causal=False), torch.randn(1, 5, 4)
    v = F.glu(op.inside(h), -1)
    kernels = torch.softmax(op.kernels(h).view(1, 5, 3, 2), 2)
    y = torch.zeros(1, 5, 4)
    for t in range(5):
        for c in range(4):
            for j in range(3):
                if 0 <= t + j - 1 < 5:
                    y[0, t, c] += kernels[0, t, j, c // 2] * v[0, t + j - 1, c]
    torch.testing.assert_close(op(h), op.out(y))


def test_attention_by_hand():
    torch.manual_seed(0)
    op, h = SequenceAttention(4, 2), torch.randn(1, 5, 4)
    q, k, v = op.query(h)[0], op.key(h)[0], op.value(h)[0]
    heads = [torch.softmax(q[:, s] @ k[:, s].T / 2**0.5, -1) @ v[:, s] for s in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(op(h)[0], op.out(torch.cat(heads, -1)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: space(d=9), ShapeError, "9 cannot be divided into 2"),
        (lambda: space(splits=1), ShapeError, "at least 2 parts"),
        (lambda: space(heads=3), ShapeError, "3 heads cannot share 4 channels"),
        (lambda: space(pool="min"), SpaceError, "by max or mean, not 'min'"),
        (lambda: space(source=6), SpaceError, "1 to 5 of 6 tokens, not 6"),
        (lambda: space(source=3, causal=True), SpaceError, "leave causal out"),
        (lambda: space(layers=0), SpaceError, "at least one layer"),
        (lambda: reversible_transformer_space((1, 8, 8), 3), SpaceError, "takes token ids"),
    ],
)
def test_sizes_that_make_no_network_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- the search ----------------------------------------------------------------------------------------------------


def prepared(search, made=None, ctx=None):
    search.setup(Problem(made or space()))
    search.prepare(ctx or context())
    return search


def test_a_search_proposes_an_architecture_and_moves_its_logits():
    search = prepared(dartsformer(schedule=QUICK))
    trial = search.ask()
    assert space().validate(trial.arch) == trial.arch
    assert search.log[0]["alpha"] != search.log[1]["alpha"]


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        if fraction >= 0.5:
            raise Killed

    whole = prepared(dartsformer(schedule=QUICK))
    with pytest.raises(Killed):
        prepared(dartsformer(schedule=QUICK), ctx=context(checkpoints=Checkpoints(tmp_path), progress=kill))
    resumed = prepared(dartsformer(schedule=QUICK), ctx=context(checkpoints=Checkpoints(tmp_path)))
    assert resumed.log == whole.log


def test_the_rate_rises_linearly_and_falls_with_the_root_of_the_step():
    s = dartsformer().schedule
    rates = [s.rate(Moment(0, 1, i, 60_000)) for i in (0, 4_999, 9_999, 39_999)]
    assert rates == pytest.approx([5e-8, 2.5e-4, 5e-4, 2.5e-4])
    assert (s.alpha_lr, s.alpha_betas, s.alpha_decay, s.betas) == (3e-4, (0.9, 0.98), 1e-3, (0.9, 0.98))
    state = state_of(space())
    assert isinstance(state.weight_optimizer, torch.optim.Adam)
    state.move_to(0, 0)
    FirstOrder().update(state, (texts(4).x, texts(4).y), (texts(4).x, texts(4).y))
    assert state.weight_optimizer.param_groups[0]["lr"] == pytest.approx(QUICK.rate(state.moment)) == 5e-3


def test_labels_are_smoothed_on_both_parts_of_the_data():
    state = state_of(space(dropout=0.0), objective=SmoothedCrossEntropy(0.1))
    data = texts(4)
    logits = state.output(data.x, state.mixture_weights()).detach()
    expected = F.cross_entropy(logits.flatten(0, 1), data.y.flatten(), label_smoothing=0.1)
    for loss in (state.train_loss, state.val_loss):
        torch.testing.assert_close(loss((data.x, data.y)).detach(), expected)


def test_zero_can_be_the_answer():
    state = state_of(space())
    for p in state.logits.values():
        p.data.zero_()
    row = state.parameters.rows["enc0.g1"]
    state.logits["enc0.g1"].data[row.labels.index("zero")] = 1.0
    assert ArgmaxOfAll()(state) == {"enc0.g0": "conv_3", "enc0.g1": "zero"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dartsformer(arch_gradient=SecondOrder()), "can only be differentiated once"),
        (lambda: dartsformer(smoothing=1.0), "from 0 to below 1"),
        (lambda: InverseSqrt(rise=-1), "rise is a number of steps"),
    ],
)
def test_settings_that_cannot_work_say_why(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_other_schedules_and_mixes_work_with_reversible_networks():
    from archipel.search.differentiable.small_temperature_darts import small_temperature_darts

    search = small_temperature_darts(skip_below=1e-3, schedule=Schedule(epochs=1, batch_size=8))
    assert space().validate(prepared(search).ask().arch)
