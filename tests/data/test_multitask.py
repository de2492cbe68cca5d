"""Several tasks on the same inputs: labels, missing labels, scenes, sealed test splits."""

from __future__ import annotations

import pytest
import torch

from archipel.core.errors import DataError, UsageError
from archipel.data.dataset import Dataset, Split
from archipel.data.load import load
from archipel.data.multitask import MISSING, MultiTaskDataset, Task, TaskSplit, label_tasks, pseudo_labelled, scenes


def test_labels_follow_from_the_classes_and_the_coin_does_not():
    data = label_tasks(load("micro-nb201"), ["digit", "parity", "upper", "random", "ink"])
    y = data.train.y
    assert torch.equal(y["parity"], y["digit"] % 2)
    assert torch.equal(y["upper"], (y["digit"] >= 5).long())
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (400, 400, 997)
    assert abs(float(y["random"].double().mean()) - 0.5) < 0.1
    again = label_tasks(load("micro-nb201"), ["random", "digit"])
    assert torch.equal(again.train.y["random"], y["random"])
    assert abs(float(y["ink"].mean())) < 1e-5
    assert abs(float(y["ink"].std()) - 1) < 1e-5


def test_missing_labels_count_neither_in_losses_nor_in_metrics():
    task, output = Task("t", "classification", 2), torch.tensor([[2.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    y = torch.tensor([0, 0, MISSING])
    torch.testing.assert_close(task.loss(output, y), task.loss(output[:2], y[:2]))
    assert task.measure(output, y) == 0.5
    assert task.loss(output, torch.full((3,), MISSING)) is None
    with pytest.raises(DataError, match="No example is labelled for the task 't'"):
        task.measure(output, torch.full((3,), MISSING))
    number, values = Task("n", "regression", 1), torch.tensor([[1.0], [float("nan")], [3.0]])
    assert float(number.loss(torch.tensor([[2.0], [9.0], [3.0]]), values)) == 0.5
    assert number.measure(values.nan_to_num(0.0), values) == 1.0
    assert number.loss(values, torch.full((3, 1), float("nan"))) is None


def test_dense_tasks_have_a_label_for_each_pixel():
    data = scenes(20, 10, 10, side=14)
    for split in (data.train, data.val, data.sealed_test):
        assert split.x.shape[1:] == (1, 14, 14)
        segmentation, ink, edge = (split.y[n] for n in ("segmentation", "ink", "edge"))
        assert torch.equal((segmentation > 0).long(), ink)
        assert bool((edge <= ink).all())
        assert 0 < int(edge.sum()) < int(ink.sum())
        assert int(segmentation.max()) <= 10
    task = data.task("segmentation")
    output = torch.nn.functional.one_hot(data.train.y["segmentation"], 11).permute(0, 3, 1, 2).float() * 20
    assert task.measure(output, data.train.y["segmentation"]) == 1.0
    assert float(task.loss(output, data.train.y["segmentation"])) < 1e-6
    assert torch.equal(scenes(20, 10, 10, side=14).train.x, data.train.x)


def test_the_test_split_is_sealed():
    data = scenes(4, 4, 4)
    data.open_test("final")
    assert data.openings == ["final"]
    with pytest.raises(DataError, match="no test split"):
        data.without_test().open_test("again")


def test_part_of_a_split_keeps_all_labels():
    part = label_tasks(load("micro-nb201")).train.take(torch.tensor([3, 5]))
    assert len(part) == 2
    assert all(len(y) == 2 for y in part.y.values())


def test_teachers_fill_in_what_is_missing_and_nothing_else():
    data = label_tasks(load("micro-nb201"), ["digit", "parity", "ink"])
    truth = {name: y.clone() for name, y in data.train.y.items()}
    data.train.y["parity"][::2] = MISSING
    data.train.y["ink"][::2] = float("nan")
    teachers = {
        "parity": lambda x: torch.tensor([[1.0, 0.0]]).expand(len(x), 2),
        "ink": lambda x: torch.zeros(len(x), 1),
    }
    y = pseudo_labelled(data, teachers).train.y
    assert torch.equal(y["parity"][1::2], truth["parity"][1::2])
    assert not bool(y["parity"][::2].any())
    assert torch.equal(y["ink"][1::2], truth["ink"][1::2])
    assert not bool(y["ink"][::2].any())
    assert int((data.train.y["parity"] == MISSING).sum()) == 200  # the data that were given are as they were
    with pytest.raises(UsageError, match="no task 'colour'"):
        pseudo_labelled(data, {"colour": teachers["ink"]})


def test_what_makes_no_sense_is_refused():
    x = torch.zeros(2, 1)
    numbers = Dataset("n", Split(x, x), Split(x, x), None, "regression", 1)
    with pytest.raises(UsageError, match="no classes to derive"):
        label_tasks(numbers)
    with pytest.raises(UsageError, match="No task 'colour'"):
        label_tasks(load("micro-nb201"), ["colour"])
    with pytest.raises(UsageError, match="kind 'dence'"):
        Task("t", "dence", 2)
    with pytest.raises(UsageError, match="at least one class"):
        Task("t", "dense", 0)
    with pytest.raises(UsageError, match="side of at least 12"):
        scenes(side=8)
    split = TaskSplit(x, {"a": torch.zeros(2), "b": torch.zeros(1)})
    a, b = Task("a", "classification", 2), Task("b", "classification", 2)
    with pytest.raises(UsageError, match="different names"):
        MultiTaskDataset("d", (a,), split, split, None)
    with pytest.raises(DataError, match="lacks labels for 'b'"):
        MultiTaskDataset("d", (a, b), split, split, None)
    with pytest.raises(UsageError, match="no task 'c'"):
        scenes(2, 2, 2).task("c")
