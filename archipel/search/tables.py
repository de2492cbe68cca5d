"""Tabular benchmarks: architectures whose training somebody else has paid for, as evaluators.

NAS-Bench-201 cells, trained digitally and for analog in-memory hardware (package analog-nasbench):
Bessalah, Abdelmoumen, Benatchba, Benmeziane. AnalogNAS-Bench. 2025. https://arxiv.org/abs/2506.18495
Graph networks on nine graphs (package nas-bench-graph):
Qin, Zhang, Wang, Zhang, Zhu. NAS-Bench-Graph. 2022. https://arxiv.org/abs/2206.09166

The packages ship pickles. They are read with an unpickler that accepts two named constructors each, replaced here by
our own, and the packages are never imported. The analog package's operation codes stand for skip, none, conv3x3,
conv1x1, avgpool3x3 on the edges 0->1, 0->2, 0->3, 1->2, 1->3, 2->3. The table itself confirms it: of all orders of the
edges and all codes for none, only this one and its mirror image (which the accuracies cannot tell from it) make the 341
networks at exactly 10 % those whose output is not connected to their input; and only with code 0 as skip do cells with
equal canonical forms have nearly equal accuracies.
"""

from __future__ import annotations

import gc
import importlib.metadata
import math
import struct
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from archipel.core.decision import Arch
from archipel.core.errors import DataError, MissingExtraError, SpaceError, UsageError, suggest
from archipel.core.safe_pickle import restricted_load
from archipel.core.space import Space
from archipel.spaces.nas_bench_graph_codec import MACROS, PROTEINS_OPS, GraphNASCodes, canonical_form, decode_key
from archipel.spaces.nas_bench_graph_codec import OPS as GRAPH_OPS
from archipel.spaces.nb201_codec import EDGE_NAMES, NB201Codes


class Table:
    """Architectures with known metrics; a lookup costs about a microsecond.

    Args:
        space: of the architectures; all of it is in the table.
        metrics: names of the columns.
        rows: key -> values in the order of ``metrics``.
        key: architecture -> key; raises KeyError or gives an unknown key for what is no architecture of the space.
    """

    def __init__(
        self,
        space: Space,
        metrics: Sequence[str],
        rows: Mapping[Hashable, tuple[float, ...]],
        key: Callable[[Arch], Hashable],
    ) -> None:
        self.space = space
        self.metrics = tuple(metrics)
        self._rows = rows
        self._key = key

    def __len__(self) -> int:
        """Number of different rows."""
        return len(self._rows)

    def evaluate(self, arch: Arch) -> dict[str, float]:
        """All metrics of an architecture.

        Raises:
            SpaceError: it is not in the table; says what is wrong with it.
        """
        return dict(zip(self.metrics, self._row(arch)))

    def value(self, arch: Arch, metric: str) -> float:
        """One metric of an architecture."""
        column = self._column(metric)
        return self._row(arch)[column]

    def column(self, metric: str) -> np.ndarray:
        """One metric of all rows, float64 ``[N]``, in the order of :meth:`keys`."""
        i = self._column(metric)
        return np.fromiter((row[i] for row in self._rows.values()), dtype=float, count=len(self._rows))

    def keys(self) -> Iterable[Hashable]:
        """The rows' keys: six operations of a cell, or a graph network's canonical form."""
        return self._rows.keys()

    def only(self, *metrics: str) -> Table:
        """The same table with fewer metrics, in the order given.

        Raises:
            UsageError: an unknown metric; names close ones.
        """
        if not metrics:
            raise UsageError(f"Name at least one metric to keep. Known: {', '.join(self.metrics)}.")
        columns = [self._column(m) for m in metrics]
        rows = {key: tuple([row[c] for c in columns]) for key, row in self._rows.items()}
        return Table(self.space, metrics, rows, self._key)

    def _row(self, arch: Arch) -> tuple[float, ...]:
        try:
            return self._rows[self._key(arch)]
        except (KeyError, TypeError, ValueError):
            self.space.validate(arch)
            raise AssertionError(f"{arch!r} is valid but not in the table of {self.space.name}.") from None

    def _column(self, metric: str) -> int:
        if metric not in self.metrics:
            raise UsageError(
                f"The table of {self.space.name} has no metric {metric!r}. {suggest(metric, self.metrics)}"
            )
        return self.metrics.index(metric)


# --- NAS-Bench-201 ----------------------------------------------------------------------------------------------------

# The package's attribute -> our metric, for the values and for the values with an uncertainty.
ACCURACIES = {
    "baseline_accuracy": "accuracy",
    "ptq_accuracy": "ptq_accuracy",
    "qat_accuracy": "qat_accuracy",
    "noisy_accuracy": "noisy_accuracy",
    "analog_accuracy": "analog_accuracy",
}
DRIFTS = tuple(f"{kind}_drift_{seconds}" for kind in ("baseline", "analog") for seconds in (60, 3600, 86400, 2592000))
NB201_CODES = ("skip", "none", "conv3x3", "conv1x1", "avgpool3x3")
NB201_KEY_EDGES = ("e01", "e02", "e03", "e12", "e13", "e23")


class _Record:
    """Stands in for the package's classes; the unpickler sets its attributes."""


class NB201Table(Table):
    """CIFAR-10 accuracies of the 15,625 NAS-Bench-201 cells, as fractions.

    ``accuracy`` is at full precision; ``ptq_accuracy`` and ``qat_accuracy`` after post-training quantisation and
    quantisation-aware training; ``noisy_accuracy`` of the full-precision weights on noisy analog hardware;
    ``analog_accuracy`` after hardware-aware training; ``{baseline,analog}_drift_{60,3600,86400,2592000}`` that many
    seconds after programming the analog weights, without and with such training, each with its ``_uncertainty``.
    The package does not say of which CIFAR-10 split the accuracies are.

    Args:
        path: of the package's ``data.anb``; found in the installed package by default.

    Raises:
        MissingExtraError: the package is not installed.
        DataError: the file is missing, malformed or incomplete.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        path = Path(path) if path else _package_file("analog-nasbench", "analognasbench/data.anb")
        allowed = {("analognasbench.data", name): _Record for name in ("Architecture", "DriftMeasurement")}
        metrics = [*ACCURACIES.values(), *DRIFTS, *(f"{d}_uncertainty" for d in DRIFTS)]
        order = [NB201_KEY_EDGES.index(name) for name in EDGE_NAMES]
        rows: dict[Hashable, tuple[float, ...]] = {}
        for key, record in _load_dict(path, allowed).items():
            try:
                genome = tuple([NB201_CODES[key[i]] for i in order])
                values = [getattr(record, a) for a in ACCURACIES]
                drifts = [getattr(record, d) for d in DRIFTS]
                values += [d.value for d in drifts] + [d.uncertainty for d in drifts]
                rows[genome] = tuple([v / 100.0 for v in values])
            except (AttributeError, IndexError, TypeError) as error:
                raise DataError(f"{path}: entry {key!r} is no cell with accuracies ({error}).") from None
        _check_rows(path, rows, 5**6)
        super().__init__(NB201Codes(), metrics, rows, itemgetter(*EDGE_NAMES))


# --- NAS-Bench-Graph --------------------------------------------------------------------------------------------------

GRAPHS = ("cora", "citeseer", "pubmed", "cs", "physics", "photo", "computers", "arxiv", "proteins")
GRAPH_METRICS = {"valid_perf": "accuracy", "perf": "test_accuracy", "latency": "latency", "para": "params"}


class _Float64:
    """Stands in for ``numpy.dtype``; only little-endian doubles occur."""

    def __init__(self, code: str, *_: Any) -> None:
        if code != "f8":
            raise ValueError(f"numbers of type {code!r}; only 'f8' belongs here")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise ValueError(f"byte order {state[1]!r}; only '<' belongs here")


def _scalar(kind: _Float64, raw: bytes) -> float:
    """Stands in for numpy's scalar constructor."""
    return struct.unpack("<d", raw)[0]


class GraphTable(Table):
    """Graph networks on one of nine graphs: 26,206 different ones, on proteins 2,021.

    ``accuracy`` is of the validation split, ``test_accuracy`` of the test split (on proteins the area under the ROC
    curve), both means of three runs; ``latency`` in the package's unit, which it does not state; ``params`` the number
    of parameters, a mean where the runs differ in it.

    Args:
        graph: one of :data:`GRAPHS`.
        path: of the package's ``.bench`` file; found in the installed package by default.

    Raises:
        UsageError: an unknown graph.
        MissingExtraError: the package is not installed.
        DataError: the file is missing, malformed or incomplete.
    """

    def __init__(self, graph: str, path: str | Path | None = None) -> None:
        if graph not in GRAPHS:
            raise UsageError(f"NAS-Bench-Graph has no graph {graph!r}. {suggest(graph, GRAPHS)}")
        path = Path(path) if path else _package_file("nas-bench-graph", f"nas_bench_graph/light/{graph}.bench")
        allowed = {("numpy", "dtype"): _Float64, ("numpy.core.multiarray", "scalar"): _scalar}
        rows: dict[Hashable, tuple[float, ...]] = {}
        for key, record in _load_dict(path, allowed).items():
            try:
                values = [float(record[m]) for m in GRAPH_METRICS]
                form = canonical_form(*decode_key(key))
            except (KeyError, TypeError, ValueError, SpaceError) as error:
                raise DataError(f"{path}: entry {key!r} is no network with metrics ({error}).") from None
            values[-1] *= 1e6  # the package counts parameters in millions
            rows[form] = tuple(values)
        _check_rows(path, rows, 2_021 if graph == "proteins" else 26_206)
        space = GraphNASCodes(PROTEINS_OPS if graph == "proteins" else GRAPH_OPS)
        known = frozenset(MACROS)  # the form of any other tree could be found as well, but it is not of this space
        super().__init__(
            space, list(GRAPH_METRICS.values()), rows, lambda a: space.canonical(a) if a["macro"] in known else None
        )
        self.graph = graph


# --- files ------------------------------------------------------------------------------------------------------------


def _package_file(distribution: str, ending: str) -> Path:
    """A data file of an installed distribution, found without importing it."""
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError(
            f"This table comes with {distribution!r}, which is not installed. Install it with: "
            "pip install 'archipel[tables]'"
        ) from error
    for file in files:
        if file.as_posix() == ending:
            return Path(str(file.locate()))
    raise DataError(
        f"The installed {distribution!r} has no file {ending!r}; reinstall it: pip install 'archipel[tables]'"
    )


def _load_dict(path: Path, allowed: Mapping[tuple[str, str], object]) -> dict[Any, Any]:
    collecting = gc.isenabled()
    gc.disable()  # a hundred thousand new objects, none of them garbage: collection would triple the time
    try:
        with path.open("rb") as file:
            loaded = restricted_load(file, dict(allowed), str(path))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}). Give the path of the package's data file."
        ) from None
    finally:
        if collecting:
            gc.enable()
    if not isinstance(loaded, dict):
        raise DataError(f"{path}: holds a {type(loaded).__name__}, not a table of architectures.")
    return loaded


def _check_rows(path: Path, rows: Mapping[Hashable, tuple[float, ...]], wanted: int) -> None:
    if len(rows) != wanted:
        raise DataError(f"{path}: has {len(rows)} different architectures, not {wanted}; reinstall the package.")
    if not all(math.isfinite(v) for row in rows.values() for v in row):
        raise DataError(f"{path}: holds NaN or infinite metrics; reinstall the package.")
