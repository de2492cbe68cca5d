"""Whatever bytes a file holds, the answer is data or an ArchipelError, never another exception."""

import csv
import io
import pickle
from contextlib import suppress

import numpy as np
import pytest
from data_files import cifar_batch, idx_bytes, write_idx_folder, write_images, write_planetoid, write_wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archipel.core.errors import ArchipelError, DataError
from archipel.core.safe_pickle import CONTAINER_GLOBALS, NUMPY_GLOBALS, SPARSE_GLOBALS, restricted_load
from archipel.data import Dataset, load
from archipel.data.graph import FILES, read_planetoid
from archipel.data.idx import parse_idx

fuzz = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def damaged(draw, content: bytes):
    """The content with some bytes changed, cut off, doubled or put in."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        i = draw(st.integers(0, max(0, min(len(out) - 1, 400))))
        kind = draw(st.sampled_from(["set", "cut", "insert", "remove"]))
        if kind == "set" and out:
            out[i] = draw(st.integers(0, 255))
        elif kind == "cut":
            del out[draw(st.integers(0, len(out))) :]
        elif kind == "insert":
            out[i:i] = draw(st.binary(max_size=8))
        else:
            del out[i : i + draw(st.integers(1, 8))]
    return bytes(out)


def loads_or_explains(path, **options):
    with suppress(ArchipelError):
        assert isinstance(load(path, **options), Dataset)


IDX = idx_bytes(np.arange(60, dtype=np.uint8).reshape(3, 5, 4))


@fuzz
@given(st.one_of(st.binary(max_size=60), damaged(IDX)))
def test_idx_bytes(content):
    with suppress(DataError):
        assert isinstance(parse_idx(content, "x"), np.ndarray)


@fuzz
@given(st.data())
def test_idx_folders(tmp_path, data):
    folder = write_idx_folder(tmp_path / "f", zipped=data.draw(st.booleans()))
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    loads_or_explains(folder)
    for p in folder.iterdir():
        p.unlink()


cells = st.one_of(
    st.integers(-5, 5).map(str),
    st.floats().map(str),
    st.sampled_from(["", "a", "b", "nan", "inf", "1e999", "NA", "?", '"', "1_0", "٣", "0x10", "\0", "\r", "ü"]),
    st.text(max_size=4),
)


@fuzz
@given(st.lists(st.lists(cells, min_size=1, max_size=4), max_size=14), st.sampled_from(["csv", "plain"]))
def test_csv_cells(tmp_path, table, style):
    out = io.StringIO(newline="")
    if style == "csv":
        with suppress(csv.Error):
            csv.writer(out).writerows([["p", "q", "y"], *table])
    else:
        out.write("\n".join(",".join(r) for r in [["p", "q", "y"], *table]))
    path = tmp_path / "t.csv"
    path.write_bytes(out.getvalue().encode("utf-8", "surrogatepass"))
    loads_or_explains(path)
    loads_or_explains(path, missing="mean", task="regression")


@fuzz
@given(st.one_of(st.binary(max_size=200), damaged(b"p,q,y\n" + b"1,2,a\n3,x,b\n" * 10)))
def test_csv_bytes(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    loads_or_explains(tmp_path / "t.csv")
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + content + b"PAR1")
    loads_or_explains(tmp_path / "t.parquet")


@fuzz
@given(st.data())
def test_parquet_bytes(tmp_path, data):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1.0, 2.0] * 5, "y": ["a", "b"] * 5}), out)
    (tmp_path / "t.parquet").write_bytes(data.draw(damaged(out.getvalue().to_pybytes())))
    loads_or_explains(tmp_path / "t.parquet")


@fuzz
@given(st.data())
def test_wav_bytes(tmp_path, data):
    for word in ("yes", "no"):
        for i in range(3):
            write_wav(tmp_path / word / f"{i}.wav", np.linspace(-0.5, 0.5, 500))
    path = tmp_path / "yes" / "1.wav"
    path.write_bytes(data.draw(st.one_of(st.binary(max_size=60), damaged(path.read_bytes()))))
    loads_or_explains(tmp_path, seconds=0.1)


@fuzz
@given(st.data())
def test_image_bytes(tmp_path, data):
    folder = tmp_path / "f"
    if not folder.exists():
        write_images(folder, each=3)
    good = (folder / "class0" / "0.png").read_bytes()
    (folder / "class1" / "1.png").write_bytes(data.draw(damaged(good)))
    loads_or_explains(folder)


ALL_GLOBALS = {**NUMPY_GLOBALS, **SPARSE_GLOBALS, **CONTAINER_GLOBALS}
PICKLES = [
    pickle.dumps({"data": np.arange(12, dtype=np.uint8), "labels": [1, 2]}, protocol=2),
    pickle.dumps({"data": np.arange(12, dtype=np.float32), b"labels": [1, 2]}, protocol=5),
]


@fuzz
@given(st.one_of(st.binary(max_size=80), *map(damaged, PICKLES)))
def test_pickle_bytes(content):
    with suppress(DataError):
        restricted_load(io.BytesIO(content), ALL_GLOBALS, "x")


@fuzz
@given(damaged(cifar_batch(30)))
def test_cifar_batches(tmp_path, content):
    (tmp_path / "data_batch_1").write_bytes(content)
    loads_or_explains(tmp_path)


@settings(fuzz, max_examples=25)
@given(st.data())
def test_planetoid_files(tmp_path, data):
    write_planetoid(tmp_path)
    path = tmp_path / f"ind.toy.{data.draw(st.sampled_from(FILES))}"
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with suppress(DataError):
        read_planetoid("toy", [tmp_path / f"ind.toy.{part}" for part in FILES])


@fuzz
@given(st.binary(max_size=400), st.integers(1, 20), st.sampled_from(["bytes", "characters"]))
def test_text_bytes(tmp_path, content, length, tokens):
    (tmp_path / "t.txt").write_bytes(content)
    loads_or_explains(tmp_path / "t.txt", length=length, tokens=tokens)


@fuzz
@given(st.text(max_size=30))
def test_specs(spec):
    with suppress(ArchipelError):
        load(spec, limit=20)


@fuzz
@given(
    st.sampled_from(["noise", "train", "limit", "seed", "val_fraction"]),
    st.one_of(st.text(max_size=6), st.floats(), st.integers(), st.none()),
)
def test_option_values(option, value):
    with suppress(ArchipelError):
        load("noisy-digits", **{option: value})
