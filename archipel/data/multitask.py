"""Several tasks on the same inputs: labels by name, some of which may be missing.

Two sources that need no download: several labels for each image of any classification data (:func:`label_tasks`), and
small scenes with a label for each pixel (:func:`scenes`). The contract is that of
:class:`~archipel.data.dataset.Dataset`: three splits, of which the test split is sealed.

A label that is missing is -1 (classes) or NaN (numbers); it counts neither in losses nor in metrics. A batch that has
no label at all for a task gives no loss for it (None), and the task is left out of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from archipel.core.errors import DataError, UsageError, suggest
from archipel.data.dataset import Dataset, Split

KINDS = ("classification", "regression", "dense")
MISSING = -1
LABELS = ("digit", "parity", "upper", "random", "ink")


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        name: unique among the tasks.
        kind: ``"classification"`` (labels ``[N]``), ``"regression"`` (``[N, 1]``) or ``"dense"`` (a class for each
            pixel, ``[N, H, W]``).
        classes: number of classes, or of output values.

    Raises:
        UsageError: another kind, or no class.
    """

    name: str
    kind: str
    classes: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"Task {self.name!r} is of kind {self.kind!r}. {suggest(self.kind, KINDS)}")
        if self.classes < 1:
            raise UsageError(f"Task {self.name!r} needs at least one class or output value, not {self.classes}.")

    @property
    def metric(self) -> str:
        """``"r2"`` for regression, else ``"accuracy"`` (of examples or pixels)."""
        return "r2" if self.kind == "regression" else "accuracy"

    def labelled(self, y: Tensor) -> Tensor:
        """Which labels are there, elementwise."""
        return ~torch.isnan(y) if self.kind == "regression" else y != MISSING

    def loss(self, output: Tensor, y: Tensor) -> Tensor | None:
        """Mean cross entropy or squared error over what is labelled; None if nothing is.

        Args:
            output: ``[N, classes]``, or ``[N, classes, H, W]`` for dense tasks.
        """
        here = self.labelled(y)
        if not bool(here.any()):
            return None
        if self.kind == "regression":
            return F.mse_loss(output[here], y[here])
        return F.cross_entropy(output, y, ignore_index=MISSING)

    def measure(self, output: Tensor, y: Tensor) -> float:
        """The metric over what is labelled.

        Raises:
            DataError: nothing is.
        """
        here = self.labelled(y)
        if not bool(here.any()):
            raise DataError(f"No example is labelled for the task {self.name!r}, so it cannot be measured.")
        if self.kind == "regression":
            rest = float(((output[here] - y[here]) ** 2).sum())
            return 1.0 - rest / float(((y[here] - y[here].mean()) ** 2).sum())
        return float((output.argmax(1) == y)[here].double().mean())


@dataclass(frozen=True)
class TaskSplit:
    """Inputs ``[N, *input_shape]``, and for each task its labels."""

    x: Tensor
    y: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> TaskSplit:
        return TaskSplit(self.x[index], {name: y[index] for name, y in self.y.items()})


@dataclass
class MultiTaskDataset:
    """A data set with several tasks, split once and for all.

    Args:
        name: as in :class:`~archipel.data.dataset.Dataset`, like ``train``, ``val``, ``sealed_test`` and ``info``.
        tasks: at least two.

    Raises:
        UsageError: a single task, or one name twice.
        DataError: a split without labels for a task, or with another number of them than inputs.
    """

    name: str
    tasks: tuple[Task, ...]
    train: TaskSplit
    val: TaskSplit
    sealed_test: TaskSplit | None
    info: dict[str, Any] = field(default_factory=dict)
    openings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [t.name for t in self.tasks]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UsageError(f"{self.name}: several tasks need different names, but they are {names}.")
        for split in (self.train, self.val, *([] if self.sealed_test is None else [self.sealed_test])):
            for task in self.tasks:
                if task.name not in split.y or len(split.y[task.name]) != len(split):
                    raise DataError(f"{self.name}: a split of {len(split)} examples lacks labels for {task.name!r}.")

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])

    def task(self, name: str) -> Task:
        """
        Raises:
            UsageError: no such task.
        """
        found = {t.name: t for t in self.tasks}
        if name not in found:
            raise UsageError(f"{self.name} has no task {name!r}. {suggest(name, found)}")
        return found[name]

    def open_test(self, purpose: str) -> TaskSplit:
        """The test split; the purpose is recorded in ``openings``.

        Raises:
            DataError: this copy of the data set has no test split.
        """
        if self.sealed_test is None:
            raise DataError(f"{self.name}: this copy has no test split; a search only gets train and validation data.")
        self.openings.append(purpose)
        return self.sealed_test

    def without_test(self) -> MultiTaskDataset:
        return MultiTaskDataset(self.name, self.tasks, self.train, self.val, None, self.info)


def label_tasks(dataset: Dataset, names: Sequence[str] = LABELS[:4], seed: int = 0) -> MultiTaskDataset:
    """Several labels for each input of a classification data set.

    Args:
        names: ``"digit"`` (the data's own classes, whatever they are), ``"parity"`` (is the class odd?), ``"upper"``
            (the upper half of the classes?), ``"random"`` (a coin thrown once for each example: nothing to learn) and
            ``"ink"`` (mean of the input, standardised by the training data; a regression).
        seed: of the coin.

    Raises:
        UsageError: other data than classes, or an unknown task.

    >>> from archipel.data.load import load
    >>> data = label_tasks(load("micro-nb201"), ["digit", "parity", "ink"])
    >>> [(t.name, t.classes) for t in data.tasks], data.train.y["parity"].shape
    ([('digit', 10), ('parity', 2), ('ink', 1)], torch.Size([400]))
    """
    if dataset.task != "classification":
        raise UsageError(f"{dataset.name} has no classes to derive tasks from; it is a {dataset.task} data set.")
    for name in names:
        if name not in LABELS:
            raise UsageError(f"No task {name!r} can be derived. {suggest(name, LABELS)}")
    ink = dataset.train.x.flatten(1).mean(1)
    classes = {"digit": dataset.classes, "ink": 1}
    tasks = tuple(
        Task(name, "regression" if name == "ink" else "classification", classes.get(name, 2)) for name in names
    )

    def labels(split: Split, number: int) -> TaskSplit:
        coin = torch.Generator().manual_seed(seed * 3 + number)
        every = {
            "digit": split.y,
            "parity": split.y % 2,
            "upper": (split.y >= (dataset.classes + 1) // 2).long(),
            "random": torch.randint(2, (len(split),), generator=coin),
            "ink": ((split.x.flatten(1).mean(1) - ink.mean()) / ink.std())[:, None],
        }
        return TaskSplit(split.x, {name: every[name] for name in names})

    test = None if dataset.sealed_test is None else labels(dataset.sealed_test, 2)
    name = f"{dataset.name}-tasks"
    return MultiTaskDataset(name, tasks, labels(dataset.train, 0), labels(dataset.val, 1), test, dict(dataset.info))


@torch.no_grad()
def pseudo_labelled(dataset: MultiTaskDataset, teachers: Mapping[str, Callable[[Tensor], Tensor]]) -> MultiTaskDataset:
    """Missing labels of the training split filled in by teachers: one network a task, trained on that task alone.

    Args:
        teachers: task -> ``[N, …] -> output``, in evaluation mode. Labels that are there are kept.

    Raises:
        UsageError: a teacher for a task that is not there.

    >>> data = label_tasks(__import__("archipel").load("micro-nb201"), ["digit", "parity"])
    >>> data.train.y["parity"][:] = MISSING
    >>> taught = pseudo_labelled(data, {"parity": lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2)})
    >>> int(taught.train.y["parity"].sum())
    400
    """
    y = dict(dataset.train.y)
    for name, teacher in teachers.items():
        task = dataset.task(name)
        output = teacher(dataset.train.x)
        guess = output if task.kind == "regression" else output.argmax(1)
        y[name] = torch.where(task.labelled(y[name]), y[name], guess.to(y[name]))
    train = TaskSplit(dataset.train.x, y)
    return MultiTaskDataset(dataset.name, dataset.tasks, train, dataset.val, dataset.sealed_test, dict(dataset.info))


def scenes(
    train: int = 400, val: int = 200, test: int = 400, side: int = 16, noise: float = 0.2, seed: int = 0
) -> MultiTaskDataset:
    """Small scenes of two handwritten digits, with a label for each pixel.

    Tasks: ``"segmentation"`` (background or the digit, 11 classes), ``"ink"`` (background or not), ``"edge"`` (pixels
    of a digit that touch the background, against all others) and ``"count"`` (how many different digits; 2 classes:
    one or two). Each split is made of digits of its own.

    Args:
        side: of the scenes; a digit is 8x8.
        noise: standard deviation, for grey values in [0, 1].

    Raises:
        UsageError: a split without scenes, or a side below 12.
    """
    if min(train, val, test) < 1 or side < 12:
        raise UsageError(f"Scenes need a side of at least 12 and one scene a split, not {side}, {(train, val, test)}.")
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8) / 16
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    parts = np.split(order, [len(y) // 2, len(y) * 5 // 8])
    made = [_scenes(images, y, part, n, side, noise, rng) for part, n in zip(parts, (train, val, test))]
    tasks = (
        Task("segmentation", "dense", 11), Task("ink", "dense", 2), Task("edge", "dense", 2),
        Task("count", "classification", 2),
    )  # fmt: skip
    return MultiTaskDataset("scenes", tasks, *made, info={"noise": noise, "seed": seed})


def _scenes(
    images: np.ndarray, y: np.ndarray, part: np.ndarray, n: int, side: int, noise: float, rng: np.random.Generator
) -> TaskSplit:
    x = np.zeros((n, side, side))
    labels = np.zeros((n, side, side), dtype=np.int64)
    kinds = np.zeros(n, dtype=np.int64)
    for i in range(n):
        first, second = rng.choice(part, 2)
        for j in (first, second):
            top, left = rng.integers(0, side - 7, 2)
            window = np.s_[i, top : top + 8, left : left + 8]
            over = images[j] > 0.3
            labels[window] = np.where(over, y[j] + 1, labels[window])
            x[window] = np.maximum(x[window], images[j])
        kinds[i] = int(y[first] != y[second])
    ink = labels > 0
    padded = np.pad(ink, ((0, 0), (1, 1), (1, 1)), constant_values=False)
    around = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    noisy = x + noise * rng.standard_normal(x.shape)
    y_of = {
        "segmentation": labels,
        "ink": ink.astype(np.int64),
        "edge": (ink & ~around).astype(np.int64),
        "count": kinds,
    }
    return TaskSplit(
        torch.from_numpy(noisy.astype(np.float32))[:, None], {k: torch.from_numpy(v) for k, v in y_of.items()}
    )
