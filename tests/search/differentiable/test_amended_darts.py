"""Amended DARTS: products with second derivatives, the amended gradient, and what it is compared with."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from archipel.core.errors import SpaceError, UsageError
from archipel.core.registry import get_method
from archipel.core.storage import Checkpoints
from archipel.data.dataset import Dataset, Split
from archipel.search.differentiable import DifferentiableSearch, FirstOrder, Schedule, SecondOrder
from archipel.search.differentiable.amended_darts import S2_OPS, AmendedGradient, DropPathSoftmax, amended_darts
from archipel.search.differentiable.hessian import (
    ExactCurvature,
    FiniteCurvature,
    cosine,
    largest_eigenvalue,
    norm,
    plus,
)
from archipel.search.differentiable.hypergradient import ConjugateGradients, HyperGradient, Neumann
from archipel.search.strategy import Context, Problem
from archipel.search.training import Diverged, Recipe
from archipel.spaces.darts import DartsSpace
from archipel.spaces.micro_nb201 import MicroNB201
from archipel.spaces.operations import DropPath

torch.set_num_threads(1)

QUICK = Schedule(epochs=2, batch_size=8, alpha_lr=0.05)
BATCH = (torch.zeros(1), torch.zeros(1))


class Quadratic:
    """L_train = w'Hw/2 + w'Pα,  L_val = v'w + b'α: then M = P' and everything is known."""

    def __init__(self, H=None, P=None, v=None, b=None, seed: int = 0, dtype=torch.double) -> None:
        g = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=g, dtype=dtype)

        r = draw(6, 6)
        self.H = r @ r.T / 6 + torch.eye(6, dtype=dtype) if H is None else torch.tensor(H, dtype=dtype)
        self.P = draw(len(self.H), 4) if P is None else torch.tensor(P, dtype=dtype)
        n, m = self.P.shape
        self.v = draw(n) if v is None else torch.tensor(v, dtype=dtype)
        self.b = draw(m) if b is None else torch.tensor(b, dtype=dtype)
        self.weights = {"w": draw(n).requires_grad_()}
        self.logits = {"α": draw(m).requires_grad_()}
        self.step_size = 0.1

    def at(self, weights, logits):
        return (weights or self.weights)["w"], (logits or self.logits)["α"]

    def train_loss(self, batch, weights=None, logits=None):
        w, α = self.at(weights, logits)
        return w @ self.H @ w / 2 + w @ self.P @ α

    def val_loss(self, batch, weights=None, logits=None):
        w, α = self.at(weights, logits)
        return self.v @ w + self.b @ α

    def descent(self, gradient):
        return dict(gradient)


def second_term(gradient: HyperGradient, problem) -> torch.Tensor:
    return gradient.terms(problem, BATCH, BATCH)[1]["α"]


def images(n: int = 32, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = torch.randn(n, 1, 8, 8, generator=g)
    x[:, 0, :4] += (2.0 * y - 1)[:, None, None]
    return Split(x, y)


def context(**kw) -> Context:
    return Context(Dataset("bars", images(), images(seed=1), None, "classification", 2), Recipe(epochs=1), **kw)


def micro() -> MicroNB201:
    return MicroNB201((1, 8, 8), 2, C=2, cells=1)


def state_of(space=None, mix=None):
    search = DifferentiableSearch(mix=mix, schedule=QUICK)
    search.setup(Problem(space or micro()))
    state = search.start(context())
    state.supernet.train()
    return state


def prepared(search, space=None, **kw):
    search.setup(Problem(space or micro()))
    search.prepare(context(**kw))
    return search


def pair():
    data = images()
    return (data.x[:8], data.y[:8]), (data.x[8:16], data.y[8:16])


# --- products ------------------------------------------------------------------------------------------------------


def test_exact_products_equal_the_dense_matrices_and_finite_ones_nearly():
    q, v = Quadratic(), {"w": torch.randn(6, dtype=torch.double)}
    exact, finite = ExactCurvature(q, BATCH), FiniteCurvature(q, BATCH)
    for curvature, tolerance in ((exact, 1e-6), (finite, 1e-3)):
        torch.testing.assert_close(curvature.hessian(v)["w"], q.H @ v["w"], rtol=0, atol=tolerance)
        torch.testing.assert_close(curvature.mixed(v)["α"], q.P.T @ v["w"], rtol=0, atol=tolerance)
        assert curvature.products == 2


def test_products_on_a_supernet_equal_differences_of_its_gradient():
    state = state_of()
    state.supernet.double()
    for p in state.logits.values():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p)), dtype=torch.double)
    (x, y), _ = pair()
    batch = x.double(), y
    g = torch.Generator().manual_seed(3)
    v = {n: torch.randn(w.shape, generator=g, dtype=torch.double) for n, w in state.weights.items()}
    exact = ExactCurvature(state, batch)
    finite = FiniteCurvature(state, batch, r=1e-6)  # crosses no kink of a ReLU
    assert cosine(exact.hessian(v), finite.hessian(v)) == pytest.approx(1.0, abs=1e-6)
    assert norm(exact.hessian(v)) == pytest.approx(norm(finite.hessian(v)), rel=1e-4)
    assert cosine(exact.mixed(v), finite.mixed(v)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("hessian", ["finite", "exact"])
def test_weights_statistics_and_momentum_are_bitwise_what_they_were(hessian):
    state = state_of()
    state.weight_step(pair()[0])
    before, optimizer = copy.deepcopy(state.supernet.state_dict()), copy.deepcopy(state.weight_optimizer.state_dict())
    random = torch.get_rng_state()
    AmendedGradient(hessian=hessian).gradient(state, *pair())
    for name, t in state.supernet.state_dict().items():
        assert torch.equal(t, before[name]), name
    for k, entry in state.weight_optimizer.state_dict()["state"].items():
        assert torch.equal(entry["momentum_buffer"], optimizer["state"][k]["momentum_buffer"])
    assert torch.equal(random, torch.get_rng_state())


def test_all_passes_of_a_difference_see_the_same_dropped_paths():
    state = state_of(mix=DropPathSoftmax(0.5))
    for m in state.supernet.modules():
        if isinstance(m, DropPath):
            m.p = 0.5
    batch, (v, _) = pair()[0], ({n: torch.ones_like(w) for n, w in state.weights.items()}, None)
    torch.manual_seed(0)
    curvature = FiniteCurvature(state, batch, r=1e-2)
    first = curvature.hessian(v)
    curvature.mixed(v)
    torch.testing.assert_close(curvature.hessian(v), first, rtol=0, atol=0)


def test_the_largest_eigenvalue_is_found():
    q = Quadratic(H=[[2.0, 0.0], [0.0, 7.0]], P=[[1.0], [1.0]])
    assert largest_eigenvalue(ExactCurvature(q, BATCH), steps=60) == pytest.approx(7.0)


# --- the amended gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hessian", ["finite", "exact"])
def test_the_amended_gradient_is_the_formula_on_a_quadratic(hessian):
    q, η = Quadratic(), 0.3
    expected = q.b - η * q.P.T @ q.H @ q.v
    found = AmendedGradient(η, hessian).gradient(q, BATCH, BATCH)["α"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_no_eta_is_first_order_bitwise():
    state = state_of()
    train, val = pair()
    amended, first = AmendedGradient(0.0).gradient(state, train, val), FirstOrder().gradient(state, train, val)
    assert all(torch.equal(amended[n], first[n]) for n in first)


def test_the_amended_term_is_linear_in_eta():
    state = state_of()
    g1 = FirstOrder().gradient(state, *pair())
    one, two = (plus(AmendedGradient(η, "exact").gradient(state, *pair()), -1.0, g1) for η in (0.1, 0.2))
    torch.testing.assert_close({n: 2 * t for n, t in one.items()}, two, rtol=1e-3, atol=1e-6)
    assert norm(one) > 0


def test_equal_curvature_in_all_directions_makes_it_parallel_and_for_one_eta_equal():
    h = 4.0
    q = Quadratic(H=(h * torch.eye(6)).tolist())
    true = -q.P.T @ q.v / h
    g2 = second_term(AmendedGradient(0.1, "exact"), q)
    assert cosine({"α": g2}, {"α": true}) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(second_term(AmendedGradient(1 / h**2, "exact"), q), true)


def test_the_angle_to_the_true_gradient_can_exceed_90_degrees_although_the_hessian_is_positive_definite():
    q = Quadratic(H=[[1.0, 0.0], [0.0, 100.0]], P=[[1.0], [1.0]], v=[1.0, -0.1], b=[0.0])
    assert second_term(ConjugateGradients(), q).item() == pytest.approx(-0.999)
    assert SecondOrder(1.0, "exact").gradient(q, BATCH, BATCH)["α"].item() == pytest.approx(-0.9)
    assert second_term(AmendedGradient(0.1, "exact"), q).item() == pytest.approx(0.9)


class Counting(Quadratic):
    """Counts passes of each loss by batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def train_loss(self, batch, weights=None, logits=None):
        self.seen.append(("train", batch[0].item()))
        return super().train_loss(batch, weights, logits)

    def val_loss(self, batch, weights=None, logits=None):
        self.seen.append(("val", batch[0].item()))
        return super().val_loss(batch, weights, logits)


@pytest.mark.parametrize(("hessian", "train_passes"), [("finite", 4), ("exact", 1)])
def test_a_step_makes_two_products_of_the_training_loss_at_one_batch_and_solves_nothing(
    hessian, train_passes, monkeypatch
):
    made = []

    class Watched(AmendedGradient):
        def curvature(self, problem, batch):
            made.append(super().curvature(problem, batch))
            return made[-1]

    for solver in ("solve", "inv", "cholesky", "lstsq"):
        monkeypatch.setattr(torch.linalg, solver, lambda *_: pytest.fail("a solver was called"))
    q = Counting()
    Watched(hessian=hessian).gradient(q, (torch.tensor(1.0), None), (torch.tensor(2.0), None))
    assert [c.products for c in made] == [2]
    assert q.seen == [("val", 2.0)] + [("train", 1.0)] * train_passes


def test_it_is_not_second_order_under_another_name():
    q = Quadratic()
    amended = AmendedGradient(0.1, "exact").gradient(q, BATCH, BATCH)["α"]
    second = SecondOrder(0.1, "exact").gradient(q, BATCH, BATCH)["α"]
    assert (amended - second).abs().max() > 0.01


# --- what it is compared with --------------------------------------------------------------------------------------


def test_conjugate_gradients_solve_for_the_exact_gradient():
    q = Quadratic()
    expected = q.b - q.P.T @ torch.linalg.solve(q.H, q.v)
    torch.testing.assert_close(ConjugateGradients().gradient(q, BATCH, BATCH)["α"], expected)
    damped = q.b - q.P.T @ torch.linalg.solve(q.H + 0.5 * torch.eye(6), q.v)
    torch.testing.assert_close(ConjugateGradients(damping=0.5).gradient(q, BATCH, BATCH)["α"], damped)


def test_the_neumann_series_is_its_polynomial_and_converges_to_the_exact_gradient():
    q, γ = Quadratic(), 0.2
    A = torch.eye(6, dtype=torch.double) - γ * q.H
    by_hand = -γ * q.P.T @ (q.v + A @ q.v + A @ A @ q.v)
    torch.testing.assert_close(second_term(Neumann(2, γ), q), by_hand)
    torch.testing.assert_close(second_term(Neumann(400), q), second_term(ConjugateGradients(), q), rtol=1e-4, atol=1e-6)


def test_conjugate_gradients_refuse_what_is_not_positive_definite_or_not_solved():
    with pytest.raises(UsageError, match=r"has curvature -\d.* raise damping"):
        ConjugateGradients().gradient(Quadratic(H=(-torch.eye(6)).tolist()), BATCH, BATCH)
    with pytest.raises(UsageError, match="after 1 steps the residual is"):
        ConjugateGradients(steps=1).gradient(Quadratic(), BATCH, BATCH)


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AmendedGradient(-0.1), "eta must not be negative, got -0.1"),
        (lambda: AmendedGradient(math.nan), "eta must not be negative"),
        (lambda: AmendedGradient(hessian="dense"), "'exact' or 'finite', not 'dense'"),
        (lambda: Neumann(K=-1), "K must not be negative"),
        (lambda: Neumann(gamma=0.0), "gamma positive"),
        (lambda: DropPathSoftmax(1.0), "probability below 1, not 1.0"),
        (lambda: amended_darts(drop_path=0.2, mix=DropPathSoftmax(0.2)), "either drop_path or mix"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("hessian", ["finite", "exact"])
def test_a_training_loss_without_the_architecture_is_refused(hessian):
    class Apart(Quadratic):
        def train_loss(self, batch, weights=None, logits=None):
            w, _ = self.at(weights, logits)
            return w @ self.H @ w / 2

    with pytest.raises(UsageError, match=r"does not depend on the architecture parameters \(M = 0\)"):
        AmendedGradient(hessian=hessian).gradient(Apart(), BATCH, BATCH)


@pytest.mark.parametrize("hessian", ["finite", "exact"])
def test_no_gradient_for_the_weights_skips_the_correction_with_a_warning(hessian):
    q = Quadratic(v=[0.0] * 6)
    with pytest.warns(RuntimeWarning, match="this step is of first order"):
        g = AmendedGradient(hessian=hessian).gradient(q, BATCH, BATCH)["α"]
    torch.testing.assert_close(g, q.b)


@pytest.mark.parametrize("hessian", ["finite", "exact"])
def test_a_product_that_is_not_finite_stops_the_search(hessian):
    H = torch.eye(6)
    H[2, 2] = float("inf")
    with pytest.raises(Diverged, match=r"product of the Hessian .* has norm (nan|inf)"):
        AmendedGradient(hessian=hessian).gradient(Quadratic(H=H.tolist()), BATCH, BATCH)


# --- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hessian", ["finite", "exact"])
def test_a_search_logs_how_heavy_the_amended_term_is_and_how_many_skips_it_would_choose(hessian):
    search = prepared(amended_darts(hessian=hessian, schedule=QUICK))
    assert micro().validate(search.ask().arch)
    assert all(entry["amended_ratio"] > 0 for entry in search.log)
    assert all(entry["skips"] in range(7) for entry in search.log)
    assert search.log[0]["alpha"] != search.log[1]["alpha"]


def test_an_interrupted_search_ends_bit_identical(tmp_path):
    class Killed(Exception):
        pass

    def kill(what, fraction):
        raise Killed

    def make():
        return amended_darts(drop_path=0.3, cutout=3, schedule=QUICK)

    whole = prepared(make())
    with pytest.raises(Killed):
        prepared(make(), checkpoints=Checkpoints(tmp_path), progress=kill)
    resumed = prepared(make(), checkpoints=Checkpoints(tmp_path))
    assert resumed.log == whole.log


def test_the_searched_network_can_be_the_one_that_is_trained():
    space = DartsSpace((1, 32, 32), 2, C=2, layers=3, nodes=1, search_auxiliary=True)
    state = state_of(space, DropPathSoftmax(0.4))
    assert space.searched == (2, 3)  # cells and channels of the built network
    output = state.output(torch.randn(2, 1, 32, 32), state.mixture_weights())
    assert isinstance(output, tuple)  # logits of both classifiers
    state.move_to(1, 3)
    state.mix.step_ended(state)
    paths = [m for m in state.supernet.modules() if isinstance(m, DropPath)]
    assert paths
    assert {m.p for m in paths} == {0.4 * state.moment.step / state.moment.steps} != {0.0}
    for m in state.supernet.modules():  # identities and zeros are never left out
        assert not (isinstance(m, nn.Sequential) and isinstance(m[-1], DropPath) and isinstance(m[0], nn.Identity))


def test_cutout_erases_from_both_batches():
    seen = []

    class Looking(FirstOrder):
        def update(self, state, train, val):
            seen.extend([train[0], val[0]])
            return 0.0

    prepared(DifferentiableSearch(arch_gradient=Looking(), schedule=amended_darts(cutout=4, schedule=QUICK).schedule))
    assert all(((x == 0).sum((1, 2, 3)) >= 4).all() for x in seen)


def test_the_enlarged_space_has_cells_of_their_own_and_two_operations():
    space = DartsSpace((1, 8, 8), 2, C=2, layers=4, nodes=2, tie="cell", ops=S2_OPS)
    assert space.size == (2**2 * 3 * 2**2) ** 4  # node 2 has one pair of sources, node 3 one of three pairs
    state = state_of(space)
    assert {row.labels for row in state.parameters.rows.values()} == {S2_OPS}
    sources = {d.name: d.options[0] for d in space.decisions if ".n" in d.name}
    once = Schedule(epochs=1, batch_size=16)
    search = prepared(amended_darts(schedule=once, fixed=sources), space)  # the variant with fixed edges
    assert {n: v for n, v in search.ask().arch.items() if ".n" in n} == sources
    with pytest.raises(SpaceError, match=r"no operation 'sep_conv'.*Did you mean"):
        DartsSpace((1, 8, 8), 2, ops=("sep_conv",))


def test_the_method_is_registered_with_the_settings_of_the_paper():
    assert get_method("amended-darts").obj is amended_darts
    search = amended_darts()
    assert (search.arch_gradient.eta, search.arch_gradient.hessian, search.arch_gradient.r) == (0.1, "finite", 0.01)
    s = search.schedule
    assert (s.alpha_lr, s.alpha_betas, s.alpha_decay) == (3e-4, (0.5, 0.999), 1e-3)
