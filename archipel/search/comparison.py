"""Comparing searches that differ in one slot: every arm alike otherwise, with seeds and baselines beside them.

Each arm is searched and its answer trained from scratch by one recipe; the test split is touched once a network, at the
end. Beside the arms stand random architectures (the mean over some of them, which any search has to beat) and the
largest architecture of the space (on small benchmarks often near the optimum). Arms that cannot work say why, and the
others go on. Every finished measurement is on disk at once, so a comparison that is interrupted goes on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import ArchipelError, RunError, UsageError
from archipel.core.space import Space
from archipel.core.storage import read_json, write_atomically, write_json
from archipel.cost.cheapest import cheapest
from archipel.data.dataset import Dataset
from archipel.search.strategy import Context, Problem, Strategy
from archipel.search.training import Diverged, Recipe, evaluate, main_metric, train

RANDOM, LARGEST = "random", "largest"


@dataclass(frozen=True)
class Comparison:
    """What is compared, and on what.

    Args:
        arms: name -> makes a fresh strategy.
        recipe: by which every answer is trained.
        seeds: how many.
        random: architectures of the random arm, a seed.
        epochs: budget of a search's supernet; None: the strategy's own.
    """

    space: Space
    dataset: Dataset
    arms: Mapping[str, Callable[[], Strategy]]
    recipe: Recipe = field(default_factory=Recipe)
    seeds: int = 3
    random: int = 8
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.random < 1:
            raise UsageError(f"A comparison needs at least one seed and one random architecture, not "
                             f"seeds={self.seeds}, random={self.random}.")  # fmt: skip
        taken = {RANDOM, LARGEST} & set(self.arms)
        if taken:
            raise UsageError(f"The arm {taken.pop()!r} is there anyway; give yours another name.")


def grid(vary: Mapping[str, Sequence[str]], make: Callable[..., Strategy]) -> dict[str, Callable[[], Strategy]]:
    """An arm for each combination of the varied slots.

    >>> sorted(grid({"select": ["argmax"], "mix": ["a", "b"]}, dict))
    ['argmax, a', 'argmax, b']
    """
    names = list(vary)
    out: dict[str, Callable[[], Strategy]] = {}
    for values in itertools.product(*vary.values()):
        out[", ".join(values)] = lambda values=values: make(**dict(zip(names, values)))
    return out


def compare(
    what: Comparison, out: Path | None = None, report: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Run a comparison.

    Args:
        out: folder for measurements, table and figure; what is there is not run again.
        report: told of each measurement.

    Returns:
        ``rows``: arm -> seed -> figures, ``failed``: arm -> reason, ``metric``, ``table``: text.

    Raises:
        RunError: the folder holds a comparison of something else.
    """
    done = _Notebook(out, _description(what))
    trained = _Trained(what)
    failed: dict[str, str] = {}
    for name in [*what.arms, RANDOM, LARGEST]:
        for seed in range(what.seeds):
            if done.get(name, seed) is not None:
                continue
            try:
                row = _measure(what, name, seed, trained)
            except (ArchipelError, Diverged) as error:
                failed[name] = str(error)
                report(f"{name}: cannot run: {error}")
                break
            done.put(name, seed, row)
            report(f"{name}, seed {seed}: test {row['test']:.4f}")
    rows = {n: done.all(n, what.seeds) for n in [*what.arms, RANDOM, LARGEST] if n not in failed}
    result = {"metric": main_metric(what.dataset), "rows": rows, "failed": failed, "table": table(rows, failed)}
    if out is not None:
        write_json(out / "comparison.json", {**_description(what), **result})
        _figure(result, out / "comparison.svg")
    return result


class _Trained:
    """Answers trained from scratch, each once for a seed."""

    def __init__(self, what: Comparison) -> None:
        self.what = what
        self._known: dict[Any, dict[str, float]] = {}

    def __call__(self, arch: Arch, seed: int) -> dict[str, float]:
        what, key = self.what, (self.what.space.canonical(arch), seed)
        if key not in self._known:
            data, metric = what.dataset, main_metric(what.dataset)
            net = what.space.build(arch, seed)
            train(net, data.train, data.task, what.recipe, seed)
            val = evaluate(net, data.val, data.task)[metric]
            test = evaluate(net, data.open_test("comparison"), data.task)[metric]
            self._known[key] = {"validation": val, "test": test}
        return self._known[key]


def _measure(what: Comparison, name: str, seed: int, trained: _Trained) -> dict[str, float]:
    space, rng = what.space, Random(f"{seed}/compare")
    if name == RANDOM:
        found = [trained(space.sample(rng), seed) for _ in range(what.random)]
        tests = [f["test"] for f in found]
        mean = {k: float(np.mean([f[k] for f in found])) for k in ("validation", "test")}
        return mean | {"between": float(np.std(tests, ddof=1)) if len(tests) > 1 else 0.0}
    if name == LARGEST:
        return trained(_largest(space), seed)
    began = time.monotonic()
    strategy = what.arms[name]()
    strategy.setup(Problem(space, rng=Random(seed)))
    strategy.prepare(Context(what.dataset.without_test(), what.recipe, seed=seed, epochs=what.epochs))
    trial = strategy.ask()
    if trial is None:
        raise UsageError(f"{name} proposed no architecture.")
    seconds = time.monotonic() - began
    info = trial.info or {}
    gap = {"gap": float(info["gap"])} if "gap" in info else {}
    return {**trained(trial.arch, seed), **gap, "search seconds": seconds}


def _largest(space: Space) -> Arch:
    """The architecture with the most parameters."""
    count: Callable[[Arch], int] = space.cost.params
    return cheapest(space, lambda arch: -count(arch)).arch


def _description(what: Comparison) -> dict[str, Any]:
    return {
        "space": what.space.name,
        "data": what.dataset.name,
        "recipe": what.recipe.as_dict(),
        "random": what.random,
        "epochs": what.epochs,
    }


class _Notebook:
    """Measurements, one file for each arm and seed."""

    def __init__(self, out: Path | None, description: dict[str, Any]) -> None:
        self.folder = None if out is None else out / "measurements"
        self._memory: dict[tuple[str, int], dict[str, float]] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder.parent / "settings.json"
        if settings.exists() and read_json(settings) != description:
            raise RunError(f"{out} holds a comparison with other settings. Choose another --out.")
        write_json(settings, description)
        for path in sorted(self.folder.glob("*.json")):
            row = read_json(path)
            self._memory[row["arm"], row["seed"]] = row["figures"]

    def get(self, arm: str, seed: int) -> dict[str, float] | None:
        return self._memory.get((arm, seed))

    def put(self, arm: str, seed: int, figures: dict[str, float]) -> None:
        self._memory[arm, seed] = figures
        if self.folder is not None:
            stem = "".join(c if c.isalnum() else "-" for c in arm)
            write_json(self.folder / f"{stem}-{seed}.json", {"arm": arm, "seed": seed, "figures": figures})

    def all(self, arm: str, seeds: int) -> list[dict[str, float]]:
        return [self._memory[arm, s] for s in range(seeds) if (arm, s) in self._memory]


def table(rows: Mapping[str, Sequence[Mapping[str, float]]], failed: Mapping[str, str]) -> str:
    """Mean ± standard deviation over seeds, an arm a row; arms that cannot run with their reason."""
    figures = list(dict.fromkeys(n for seeds in rows.values() for row in seeds for n in row))
    lines = [["arm", *figures]]
    for arm, seeds in rows.items():
        cells = []
        for n in figures:
            values = [row[n] for row in seeds if n in row]
            spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4g}{spread}" if values else "–")
        lines.append([arm, *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines)
    return text + "".join(f"\n{arm}: cannot run: {reason}" for arm, reason in failed.items())


def _figure(result: dict[str, Any], path: Path) -> None:
    """Test figure of every arm, a dot a seed, with the mean random architecture as a line."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = {arm: [row["test"] for row in seeds] for arm, seeds in result["rows"].items()}
    fig, ax = plt.subplots(figsize=(6.4, 0.5 * len(rows) + 1.2))
    for y, values in enumerate(reversed(rows.values())):
        ax.plot(values, [y] * len(values), "o", color="#0b6e99", alpha=0.5)
        ax.plot([np.mean(values)], [y], "|", color="#1b2733", markersize=16)
    if RANDOM in rows:
        ax.axvline(float(np.mean(rows[RANDOM])), color="#c2813d", lw=1)
    ax.set_yticks(range(len(rows)), list(reversed(rows)))
    ax.set_xlabel(f"test {result['metric']}")
    buffer = io.BytesIO()
    fig.savefig(buffer, format="svg", bbox_inches="tight")
    plt.close(fig)
    write_atomically(path, lambda f: f.write(buffer.getvalue()))
