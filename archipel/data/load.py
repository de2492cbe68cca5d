"""``load``: from a name, file or folder to three fixed splits, of which the test split is sealed.

digits                              a named data set; ``archipel data`` lists them
noisy-digits?noise=0.25             with options
my_images/    my.csv?target=price   your own
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from archipel.core.errors import DataError, UsageError, suggest
from archipel.data import splits
from archipel.data.dataset import Dataset, Split
from archipel.data.detect import READERS, kind_of
from archipel.data.find import fingerprint, obtain, user_path
from archipel.data.graph import GraphData
from archipel.data.options import check_options, exists, options_of, parse_spec
from archipel.data.raw import Raw
from archipel.data.sources import SOURCES, Source

# Arguments of load that may also stand in the spec
SPLIT_OPTIONS = {"seed": int, "val_fraction": float, "test_fraction": float, "limit": int | None}
# Split -> the rows and labels it is taken from, and which of them
Plan = dict[str, tuple[Any, Tensor, Tensor]]


def load(
    spec: str | Path,
    seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    limit: int | None = None,
    **options: Any,
) -> Dataset:
    """Load a data set and split it.

    A published test split is kept; validation examples are drawn from the rest, stratified by class. Everything that
    is fitted (means, categories, vocabularies) is fitted on the training split alone and recorded in ``info``.

    Args:
        spec: a name, or the path of a file or folder; options may follow as ``?name=value&name=value``. There the
            other arguments can be given too, and win over those of the call.
        seed: of the splits and of ``limit``.
        val_fraction: of all examples, or of the training examples where a test split is published.
        test_fraction: of all examples; without effect where a test split is published.
        limit: at most so many training and validation examples together, and the test split in proportion.
        **options: of the source, such as ``noise``, ``target``, ``size``, ``tokens``; ``path`` of a published data
            set: where its files are; ``kind`` of a user's file: how to read it.

    Returns:
        A :class:`Dataset`; for graphs a :class:`archipel.data.graph.GraphData`. ``info["split"]`` says by which rule
        it was split.

    Raises:
        DataError: missing or malformed files; names file and place.
        UsageError: unknown names or options.

    >>> data = load("digits", seed=3)
    >>> len(data.train), len(data.val), data.input_shape, data.classes
    (1079, 359, (1, 8, 8), 10)
    """
    name, given = parse_spec(spec)
    own = check_options(name, {k: given.pop(k) for k in SPLIT_OPTIONS if k in given}, SPLIT_OPTIONS)
    seed, limit = own.get("seed", seed), own.get("limit", limit)
    val_fraction, test_fraction = own.get("val_fraction", val_fraction), own.get("test_fraction", test_fraction)
    splits.check_fractions(val_fraction, test_fraction)
    _check_whole("seed", seed, 0)
    if limit is not None:
        _check_whole("limit", limit, 2)
    given = {**given, **options}
    try:
        made, info = _read(name, dict(given), seed)
        info["options"] = {k: str(v) if isinstance(v, Path) else v for k, v in given.items()}
        info["limit"] = limit
        if isinstance(made, GraphData):
            return _limited_graph(made, info, limit, seed)
        return _split(str(spec), made, info, seed, val_fraction, test_fraction, limit)
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error}).") from error


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}.")


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(name: str, options: dict[str, Any], seed: int) -> tuple[Raw | GraphData, dict[str, Any]]:
    """The content, and what to record about where it came from."""
    if name in SOURCES:
        return _read_named(SOURCES[name], options, seed)
    path = user_path(name)
    if not exists(name):
        raise _unknown(name)
    kind = kind_of(path, options.pop("kind", None))
    reader = READERS[kind]
    made = reader(path, **check_options(f"{name} ({kind})", options, options_of(reader, skip=1)))
    return made, {"source": str(path), "what": f"your own ({kind})", "files": fingerprint(made.files)}


def _read_named(source: Source, options: dict[str, Any], seed: int) -> tuple[Raw | GraphData, dict[str, Any]]:
    info: dict[str, Any] = {
        "source": source.name,
        "what": source.what,
        "licence": source.licence,
        "citation": source.citation,
    }
    published = source.published
    known = options_of(source.read, skip=1 if published else 0)
    if published is None:
        made = source.read(**check_options(source.name, options, known))
        return made, {**info, "files": fingerprint(made.files)}
    options = check_options(source.name, options, {**known, "path": str})
    files = obtain(source.name, published, options.pop("path", None))
    if source.is_graph:
        return source.read(files, seed=seed, **options), {**info, "files": fingerprint(files)}
    made = source.read(files, **options)
    return made, {**info, "files": fingerprint(made.files)}


def _unknown(name: str) -> DataError | UsageError:
    if any(mark in name for mark in "/\\.~"):
        return DataError(f"{name}: there is no such file or folder.")
    return UsageError(f"No data set, file or folder is called {name!r}. {suggest(name, SOURCES)}")


# --- splitting --------------------------------------------------------------------------------------------------------


def _split(
    name: str, raw: Raw, info: dict[str, Any], seed: int, val_fraction: float, test_fraction: float, limit: int | None
) -> Dataset:
    plan, rule = _plan(raw, seed, val_fraction, test_fraction)
    stratify = raw.task == "classification"
    if limit is not None:
        chosen = _limit({k: (y, i) for k, (_, y, i) in plan.items()}, limit, seed, raw.classes if stratify else 0)
        plan = {k: (x, y, chosen[k]) for k, (x, y, _) in plan.items()}
    x, y, index = plan["train"]
    transform, fitted = raw.fit(x[index], y[index])
    ready = {k: Split(*transform(x[i], y[i])) for k, (x, y, i) in plan.items()}
    classes = fitted.pop("classes", raw.classes)
    info["split"] = {"rule": rule, "seed": seed, **{k: len(s) for k, s in ready.items()}}
    info = {**info, **raw.info, **fitted}
    return Dataset(name, ready["train"], ready["val"], ready["test"], raw.task, classes, info)


def _plan(raw: Raw, seed: int, val_fraction: float, test_fraction: float) -> tuple[Plan, str]:
    """Which rows go where, and the rule in words."""
    x, y = raw.parts["pool"]
    n = len(y)
    fixed: Plan = {k: (*raw.parts[k], torch.arange(len(raw.parts[k][1]))) for k in ("val", "test") if k in raw.parts}
    to_draw = [k for k in ("test", "val") if k not in fixed]
    if raw.task == "classification":
        splits.check_classes(y, raw.info["class_names"], 1 + len(to_draw), raw.where)
    if n < 1 + len(to_draw):
        raise DataError(f"{raw.where}: {n} rows are too few to train, validate and test; at least {1 + len(to_draw)}.")
    sizes = {"val": max(1, round(n * val_fraction)), "test": max(1, round(n * test_fraction))}
    if raw.contiguous:
        drawn = dict(zip(("train", "val", "test"), splits.blocks(n, sizes["val"], sizes["test"]), strict=True))
        rule = "consecutive blocks, whatever the seed (it only chooses within limit)"
    elif raw.counts is not None:
        train, val, test = splits.divide(y, list(raw.counts), seed, stratify=True)
        drawn = {"train": train, "val": val, "test": test}
        rule = f"{raw.counts[0]} train, {raw.counts[1]} val, the rest test, stratified, by seed (fractions unused)"
    else:
        stratify = raw.task == "classification"
        sets = splits.divide(y, [sizes[k] for k in to_draw], seed, stratify)
        drawn = dict(zip([*to_draw, "train"], sets, strict=True))
        how = "stratified, by seed" if stratify else "by seed"
        rule = "; ".join(
            [*(f"published {k}" for k in fixed), f"{' and '.join(to_draw[::-1]) or 'nothing'} drawn, {how}"]
        )
    return {**{k: (x, y, i) for k, i in drawn.items()}, **fixed}, rule


def _limit(parts: dict[str, tuple[Tensor, Tensor]], limit: int, seed: int, classes: int) -> dict[str, Tensor]:
    """At most ``limit`` training and validation rows, and the test rows in proportion.

    Args:
        parts: split -> labels and the indices of its rows among them.
        classes: to stratify by; 0: none.

    Raises:
        UsageError: too few for one example of each class in both.
    """
    least = max(classes, 1)
    if limit < 2 * least:
        raise UsageError(
            f"limit {limit} is too small for one training and validation example of each of {least} classes."
        )
    n_train, n_val = len(parts["train"][1]), len(parts["val"][1])
    share = min(1.0, limit / (n_train + n_val))
    if share == 1.0:
        return {k: i for k, (_, i) in parts.items()}
    val = min(max(round(n_val * share), min(least, n_val)), n_val)
    counts = {"val": val, "train": limit - val, "test": max(least, round(len(parts["test"][1]) * share))}
    return {k: splits.subsample(i, y, counts[k], seed, stratify=classes > 0) for k, (y, i) in parts.items()}


def _limited_graph(graph: GraphData, info: dict[str, Any], limit: int | None, seed: int) -> GraphData:
    graph.info = {**info, **graph.info}
    assert graph.sealed_test is not None  # readers always return it
    parts = {"train": graph.train, "val": graph.val, "test": graph.sealed_test}
    if limit is not None:
        chosen = _limit({k: (s.y, torch.arange(len(s))) for k, s in parts.items()}, limit, seed, graph.classes)
        parts = {k: s.take(chosen[k]) for k, s in parts.items()}
    graph.train, graph.val, graph.sealed_test = parts["train"], parts["val"], parts["test"]
    graph.info["split"] = {**graph.info["split"], **{k: len(s) for k, s in parts.items()}}
    return graph
