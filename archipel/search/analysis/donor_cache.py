"""What a cache of parent weights would have saved in a recorded evolution: hits, bytes moved, bytes held.

Underwood, Madhyastha, Burns, Nicolae. Understanding Patterns of Deep Learning Model Evolution in Network Architecture
Search. 2023. https://arxiv.org/abs/2309.12576

The recorded events are replayed in their order. A dispatched child requests its donor's tensors: a hit if the cache
holds them, else they are fetched from a store and offered to the cache. A finished evaluation offers its own model.
Capacity counts models. When the cache is full, a policy says who leaves:

    lru         the one requested (or stored) longest ago
    lfu         the one requested least often, the earliest stored among equals
    fifo        the earliest stored
    alive       whoever leaves the population and has no pending child, at once; if all are needed, the earliest stored
    best-alive  holds the fittest living members, always: one that enters their circle again is fetched again
    belady      the one whose next request is farthest, which may be the newcomer: the optimum without prefetching

With aging, one worker and capacity c, best-alive hits with probability 1 - C(P-c, S) / C(P, S). It prefetches, so
Belady's bound does not strictly bind it (with prefetching and hindsight, every request could hit).

Layers are shared copy-on-write: a child's layer is its parent's unless its gene changed, so that models in the cache
share what they have in common, and a miss moves only the layers that no cached model has. With ``shared="prefix"``
only the layers before the first changed one are the parent's (those after it see other inputs).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import comb, inf

import numpy as np

from archipel.core.errors import UsageError, suggest
from archipel.search.analysis.lineage import Lineage

POLICIES = ("lru", "lfu", "fifo", "alive", "best-alive", "belady")
LayerBytes = Callable[[str, object], int]


@dataclass(frozen=True)
class CacheResult:
    """Outcome of a replay.

    Attributes:
        requests, hits: of donors.
        promotions: models fetched without a request (best-alive only).
        moved_bytes: by misses and promotions, whole models.
        moved_layer_bytes: the same, without layers that another cached model has.
        peak_bytes, peak_layer_bytes: most that was held at once, as whole models and with shared layers.
    """

    policy: str
    capacity: int
    requests: int
    hits: int
    promotions: int
    moved_bytes: int
    moved_layer_bytes: int
    peak_bytes: int
    peak_layer_bytes: int

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests


def best_alive_hit_rate(population: int, sample: int, capacity: int) -> float:
    """Probability that a tournament's winner is among the ``capacity`` best members.

    >>> round(best_alive_hit_rate(100, 10, 25), 4)
    0.9521
    """
    return 1 - comb(population - min(capacity, population), sample) / comb(population, sample)


def layer_versions(lineage: Lineage, shared: str = "unchanged") -> np.ndarray:
    """``[N, D]`` a number for each tensor: a child's layer has its parent's number where it is inherited.

    Args:
        shared: ``"unchanged"``: every layer whose gene is the parent's; ``"prefix"``: those before the first change.
    """
    if shared not in ("unchanged", "prefix"):
        raise UsageError(f"shared is 'unchanged' or 'prefix', not {shared!r}.")
    codes_ND = lineage.codes
    same_ND = codes_ND == codes_ND[lineage.parent]
    if shared == "prefix":
        same_ND = np.logical_and.accumulate(same_ND, axis=1)
    D = codes_ND.shape[1]
    versions = [list(range(i * D, i * D + D)) for i in range(len(codes_ND))]
    for i, (p, same_D) in enumerate(zip(lineage.parent.tolist(), same_ND.tolist())):
        if p >= 0:
            versions[i] = [old if same else new for old, new, same in zip(versions[p], versions[i], same_D)]
    return np.array(versions)


def layer_bytes(lineage: Lineage, bytes_of: LayerBytes | None = None) -> np.ndarray:
    """``[N, D]`` size of each layer; closed decisions have none. Every open layer counts 1 if no sizes are given."""
    out = (lineage.codes >= 0).astype(np.int64)
    if bytes_of is not None:
        for i, e in enumerate(lineage.evaluations):
            out[i] = [bytes_of(name, e.arch[name]) if name in e.arch else 0 for name in lineage.decisions]
    if (out < 0).any():
        raise UsageError("Layers cannot have negative sizes; bytes_of returned one.")
    return out


def simulate_cache(
    lineage: Lineage,
    policy: str,
    capacity: int,
    population: int,
    bytes_of: LayerBytes | None = None,
    shared: str = "unchanged",
) -> CacheResult:
    """Replay a recorded evolution against a cache.

    Args:
        lineage: of an aging evolution.
        policy: one of :data:`POLICIES`.
        capacity: models that the cache holds.
        population: P of the evolution.
        bytes_of: (decision, value) -> size of that layer.
        shared: see :func:`layer_versions`.

    Raises:
        UsageError: unknown policy, capacity below 1, or an evolution without donors.
    """
    if policy not in POLICIES:
        raise UsageError(f"No cache policy {policy!r}. {suggest(policy, POLICIES)}")
    if capacity < 1:
        raise UsageError(f"A cache holds at least 1 model, not {capacity}.")
    if not len(lineage.requests):
        raise UsageError("This evolution has no donors (founders only), so there is nothing to cache.")
    cache = _Cache(layer_versions(lineage, shared), layer_bytes(lineage, bytes_of))
    return _Replay(lineage, policy, capacity, population, cache).run()


def hit_rates(
    lineage: Lineage, capacities: list[int], population: int, policies: tuple[str, ...] = POLICIES
) -> Mapping[str, list[float]]:
    """Hit rate of each policy at each capacity."""
    return {p: [simulate_cache(lineage, p, c, population).hit_rate for c in capacities] for p in policies}


class _Cache:
    """The models held, and what they weigh as a whole and with shared layers."""

    def __init__(self, version_ND: np.ndarray, bytes_ND: np.ndarray) -> None:
        self._versions, self._layer_bytes = version_ND.tolist(), bytes_ND.tolist()
        self._model_bytes = bytes_ND.sum(1).tolist()
        self._users: Counter[int] = Counter()
        self.held: OrderedDict[int, None] = OrderedDict()  # earliest stored (lru: used) first
        self.bytes = self.layer_bytes = self.peak = self.layer_peak = 0
        self.moved = self.moved_layers = 0

    def layers(self, model: int) -> Iterator[tuple[int, int]]:
        """Each layer's version and size."""
        return zip(self._versions[model], self._layer_bytes[model])

    def fetch(self, model: int) -> None:
        """Move a model here, whether or not it is then kept."""
        self.moved += self._model_bytes[model]
        self.moved_layers += sum(size for version, size in self.layers(model) if not self._users[version])

    def add(self, model: int) -> None:
        self.held[model] = None
        self.bytes += self._model_bytes[model]
        for version, size in self.layers(model):
            self.layer_bytes += 0 if self._users[version] else size
            self._users[version] += 1
        self.peak, self.layer_peak = max(self.peak, self.bytes), max(self.layer_peak, self.layer_bytes)

    def drop(self, model: int) -> None:
        del self.held[model]
        self.bytes -= self._model_bytes[model]
        for version, size in self.layers(model):
            self._users[version] -= 1
            self.layer_bytes -= 0 if self._users[version] else size


class _Replay:
    """The recorded events against a cache under one policy."""

    def __init__(self, lineage: Lineage, policy: str, capacity: int, population: int, cache: _Cache) -> None:
        self.parent = lineage.parent.tolist()
        self.ok = lineage.ok.tolist()
        self.fitness = lineage.fitness.tolist()
        self.policy, self.capacity, self.population, self.cache = policy, capacity, population, cache
        self.events = list(_events(lineage))
        self.members: deque[int] = deque()
        self.pending: Counter[int] = Counter()  # children of each donor that have not returned
        self.uses: Counter[int] = Counter()
        self.ahead: dict[int, deque[int]] = {}  # events of the requests to come
        for now, (kind, i) in enumerate(self.events):
            if kind == "request":
                self.ahead.setdefault(self.parent[i], deque()).append(now)

    def next_use(self, model: int) -> float:
        ahead = self.ahead.get(model)
        return ahead[0] if ahead else inf

    def victim(self, newcomer: int) -> int:
        """Who leaves a full cache."""
        held = self.cache.held
        if self.policy == "belady":
            return max([newcomer, *held], key=self.next_use)
        if self.policy == "lfu":
            return min(held, key=self.uses.__getitem__)  # the first of equals is the earliest stored
        return next(iter(held))

    def offer(self, model: int) -> None:
        """Store a model, unless the policy would rather keep what it has."""
        if len(self.cache.held) >= self.capacity:
            victim = self.victim(model)
            if victim == model:
                return
            self.cache.drop(victim)
        self.cache.add(model)

    def refresh(self, newcomer: int) -> int:
        """best-alive: hold exactly the fittest members; returns how many had to be fetched."""
        best = sorted(self.members, key=lambda m: self.fitness[m], reverse=True)[: self.capacity]
        for model in set(self.cache.held).difference(best):
            self.cache.drop(model)
        promoted = [m for m in best if m not in self.cache.held]
        for model in promoted:
            if model != newcomer:
                self.cache.fetch(model)
            self.cache.add(model)
        return sum(m != newcomer for m in promoted)

    def request(self, donor: int) -> bool:
        self.ahead[donor].popleft()
        self.uses[donor] += 1
        self.pending[donor] += 1
        if donor in self.cache.held:
            if self.policy == "lru":
                self.cache.held.move_to_end(donor)
            return True
        self.cache.fetch(donor)
        if self.policy != "best-alive":
            self.offer(donor)
        return False

    def done(self, model: int) -> int:
        """A result returns; gives the number of promotions that it causes."""
        donor = self.parent[model]
        if donor >= 0:
            self.pending[donor] -= 1
        needless = {donor}
        if self.ok[model]:
            self.members.append(model)
            if len(self.members) > self.population:
                needless.add(self.members.popleft())
        if self.policy == "best-alive":
            return self.refresh(model)
        if self.policy == "alive":
            for gone in needless.intersection(self.cache.held).difference(self.members):
                if not self.pending[gone]:
                    self.cache.drop(gone)
        if self.ok[model]:  # a failed evaluation leaves no model
            self.offer(model)
        return 0

    def run(self) -> CacheResult:
        hits = requests = promotions = 0
        for kind, i in self.events:
            if kind == "request":
                requests += 1
                hits += self.request(self.parent[i])
            else:
                promotions += self.done(i)
        c = self.cache
        return CacheResult(
            self.policy, self.capacity, requests, hits, promotions, c.moved, c.moved_layers, c.peak, c.layer_peak
        )


def _events(lineage: Lineage) -> Iterator[tuple[str, int]]:
    """("request", child) at its dispatch and ("done", evaluation) at its completion, in the order they happened."""
    requests = deque(lineage.requests.tolist())
    for i in range(len(lineage)):
        while requests and lineage.told[requests[0]] <= i:
            yield "request", requests.popleft()
        yield "done", i
