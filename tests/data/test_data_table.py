"""CSV and Parquet tables."""

import numpy as np
import pytest
import torch

from archipel.core.errors import DataError, UsageError
from archipel.data import load

CITIES = ["Oslo", "Rome", "Lima"]


def rows(n: int = 60) -> list[list[object]]:
    rng = np.random.default_rng(0)
    return [[i, round(float(rng.normal(40, 9)), 3), CITIES[i % 3], "yes" if (i // 2) % 2 else "no"] for i in range(n)]


def write(path, lines, header=("id", "age", "city", "buys"), delimiter=","):
    path.write_text("\n".join([delimiter.join(header)] + [delimiter.join(map(str, r)) for r in lines]) + "\n")
    return path


def features(data, index=0):
    return dict(zip(data.info["features"], data.train.x[index].tolist(), strict=True))


def test_numbers_are_standardised_and_words_become_one_hot_columns(tmp_path):
    data = load(write(tmp_path / "t.csv", rows()), drop=("id",))
    assert data.task == "classification"
    assert data.info["class_names"] == ["no", "yes"]
    assert data.info["features"] == ["age", "city=Lima", "city=Oslo", "city=Rome"]
    assert data.train.x.dtype == torch.float32
    assert abs(float(data.train.x[:, 0].mean())) < 1e-6
    assert abs(float(data.train.x[:, 0].std(correction=0)) - 1) < 1e-6
    assert data.train.x[:, 1:].sum(1).tolist() == [1.0] * len(data.train)
    assert (len(data.train), len(data.val), len(data.sealed_test)) == (36, 12, 12)


def test_statistics_come_from_training_rows_alone(tmp_path):
    """Whatever the other rows hold, training rows and record stay the same, bit by bit."""
    table = rows()
    first = load(write(tmp_path / "t.csv", table), drop="id", seed=4)
    kept = set(load(tmp_path / "t.csv", seed=4, normalise=False).train.x[:, 0].long().tolist())
    changed = [r if r[0] in kept else [r[0], 1e6, "Paris", r[3]] for r in table]
    second = load(write(tmp_path / "t.csv", changed), drop="id", seed=4)
    assert torch.equal(first.train.x, second.train.x)
    assert first.info["normalisation"] == second.info["normalisation"]
    assert second.info["features"] == first.info["features"]  # no column for Paris
    assert second.val.x[:, 1:].abs().sum() == 0  # an unknown category is all zeros
    assert second.val.x[:, 0].min() > 1000


def test_an_empty_category_is_all_zeros(tmp_path):
    table = rows()
    for r in table[:20]:
        r[2] = ""
    data = load(write(tmp_path / "t.csv", table), drop="id")
    assert data.info["features"] == ["age", "city=Lima", "city=Oslo", "city=Rome"]
    assert set(data.train.x[:, 1:].sum(1).tolist()) == {0.0, 1.0}


def test_a_numeric_target_is_a_regression_and_can_be_scaled_back(tmp_path):
    path = write(tmp_path / "t.csv", rows())
    data = load(path, target="age")
    assert data.task == "regression"
    assert data.classes == 1
    assert data.train.y.shape == (36, 1)
    assert data.train.y.dtype == torch.float32
    assert abs(float(data.train.y.mean())) < 1e-6
    raw = load(path, target="age", normalise=False)
    scale = data.info["target_scale"]
    torch.testing.assert_close(data.val.y * scale["std"] + scale["mean"], raw.val.y)


def test_whole_numbers_are_classes_if_few_unless_said_otherwise(tmp_path):
    path = write(tmp_path / "t.csv", [[i * 0.5, i % 4] for i in range(40)], header=("x", "rooms"))
    assert load(path).info["class_names"] == ["0", "1", "2", "3"]
    assert load(f"{path}?task=regression").task == "regression"
    assert load(path, target="x").task == "regression"


def test_numbers_can_be_read_as_categories(tmp_path):
    path = write(tmp_path / "t.csv", [[i % 3, i * 0.5, "ab"[i % 2]] for i in range(40)], header=("zone", "x", "y"))
    assert load(path, categorical="zone").info["features"] == ["zone=0", "zone=1", "zone=2", "x"]


def test_other_delimiters_quotes_and_a_byte_order_mark_are_understood(tmp_path):
    lines = [f'"{i};{i}";{i / 7};{"ab"[i % 2]}' for i in range(30)]
    (tmp_path / "t.csv").write_text("\ufeffname;x;y\n\n" + "\n".join(lines) + "\n\n", encoding="utf-8")
    data = load(tmp_path / "t.csv", drop="name")
    assert data.info["columns"] == ["x"]
    write(tmp_path / "t.tsv", rows(), delimiter="\t")
    assert load(tmp_path / "t.tsv").input_shape == (5,)


def test_missing_numbers_are_an_error_or_the_training_mean(tmp_path):
    table = rows()
    table[7][1] = ""
    path = write(tmp_path / "t.csv", table)
    with pytest.raises(DataError, match=r"t\.csv: line 9, column 'age': the number is missing or NaN \(1 such"):
        load(path)
    data = load(path, missing="mean", drop="id", seed=1)
    everything = torch.cat([data.train.x, data.val.x, data.sealed_test.x])[:, 0]
    assert int((everything.abs() < 1e-7).sum()) == 1


FAULTS = {
    "ragged": ([[1, 2, "a"], [1, 2]], "line 3 has 2 cells, but the header has 3"),
    "ragged, too long": ([[1, 2, "a"], [1, 2, 3, 4]], "line 3 has 4 cells, but the header has 3"),
    "word among numbers": (
        [[1, 2, "a"]] * 9 + [["x", 2, "b"]],
        "line 11, column 'p': 'x' is not a number",
    ),
    "NaN": ([[1, 2, "a"], ["nan", 2, "b"]], "line 3, column 'p': the number is missing or NaN"),
    "infinity": ([[1, 2, "a"], [1, "inf", "b"]], "line 3, column 'q': inf is infinite"),
    "too large": ([[1, 2, "a"], [1, 1e300, "b"]], r"line 3, column 'q': 1e\+300 is infinite or beyond the range"),
    "missing target": ([[1, 2, "a"], [1, 2, ""]], "line 3: the target 'y' is missing"),
    "single class": ([[1, 2, "a"]] * 5, "all 5 examples are of one class"),
    "rare class": ([[1, 2, "a"]] * 5 + [[1, 2, "b"]] * 2, "at least 3 examples to appear in each split, but 'b' has 2"),
    "only a header": ([], "only a header line"),
    "empty column": ([["", 2, "ab"[i % 2]] for i in range(8)], "column 'p' is empty; say drop=p"),
    "names": ([[f"n{i}", i, "ab"[i % 2]] for i in range(200)], "column 'p' has 200 different words"),
    "open quote": ([[1, 2, '"a']], "line 2: unexpected end of data"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_table_gives_one_error_naming_file_and_place(tmp_path, fault):
    lines, message = FAULTS[fault]
    path = write(tmp_path / "t.csv", lines, header=("p", "q", "y"))
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"1,2,3\n4,5,6\n", "line 1 holds only numbers"),
        (b"a,a,b\n1,2,3\n", "two columns are called 'a'"),
        (b"a,,b\n1,2,3\n", "line 1: column 2 has no name"),
        (b"a\n1\n2\n", "only one column, 'a'"),
        (b"a,b\n\xff\xfe,1\n", "byte 4 is not UTF-8"),
    ],
)
def test_a_file_without_a_usable_header_is_an_error(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "bys"}, r"target: there is no column 'bys'\. Did you mean: buys\?"),
        ({"drop": "idd"}, r"drop: there is no column 'idd'\. Did you mean: id\?"),
        ({"drop": "id,age,city"}, "no inputs and target are left"),
        ({"task": "clustering"}, "task must be 'classification' or 'regression'"),
        ({"missing": "median"}, "missing must be 'error' or 'mean'"),
        ({"delimiter": "||"}, "delimiter must be one character"),
        ({"colour": "red"}, "has no option 'colour'"),
    ],
)
def test_wrong_options_are_explained(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        load(write(tmp_path / "t.csv", rows()), **options)


def test_words_cannot_be_regressed(tmp_path):
    with pytest.raises(DataError, match="target 'buys' is 'no'; regression needs numbers"):
        load(write(tmp_path / "t.csv", rows()), task="regression")


def test_parquet_gives_the_same_data_as_csv(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = write(tmp_path / "t.csv", rows())
    columns = [list(c) for c in zip(*rows(), strict=True)]
    table = pa.table(
        {
            "id": pa.array(columns[0], pa.int32()),
            "age": pa.array(columns[1], pa.float64()),
            "city": pa.array(columns[2]).dictionary_encode(),
            "buys": pa.array(columns[3]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    a, b = load(path), load(tmp_path / "t.parquet")
    assert torch.equal(a.train.x, b.train.x)
    assert torch.equal(a.sealed_test.y, b.sealed_test.y)


def test_malformed_parquet_is_an_error_naming_the_place(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(DataError, match=r"t\.parquet: not a readable Parquet file"):
        load(path)
    labels = ["a", "b"] * 4
    pq.write_table(pa.table({"x": [1.0, None, *[2.0] * 6], "y": labels}), path)
    with pytest.raises(DataError, match="row 2, column 'x': the number is missing"):
        load(path)
    pq.write_table(pa.table({"x": [[1, 2]] * 8, "y": labels}), path)
    with pytest.raises(DataError, match="column 'x' is of type list"):
        load(path)
    pq.write_table(pa.table({"x": pa.array([], pa.float64()), "y": pa.array([], pa.string())}), path)
    with pytest.raises(DataError, match="0 rows of 2 columns"):
        load(path)
