"""The restricted unpickler: what it reads, and that nothing that a file says is run."""

import collections
import io
import os
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse as sp

from archipel.core.errors import DataError
from archipel.core.safe_pickle import (
    CONTAINER_GLOBALS,
    NUMPY_GLOBALS,
    SPARSE_GLOBALS,
    PickledArray,
    as_array,
    as_matrix,
    restricted_load,
)


def load(content: bytes, allowed=NUMPY_GLOBALS):
    return restricted_load(io.BytesIO(content), allowed, "file.pkl")


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_by_name_and_nothing_runs(protocol, monkeypatch):
    content = pickle.dumps({"data": [Evil()]}, protocol=protocol)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("it ran"))
    with pytest.raises(DataError, match=r"file\.pkl: this pickle asks for '(posix|nt)\.system'.*nothing was exec"):
        load(content)


@pytest.mark.parametrize("name", ["eval", "exec", "getattr", "open", "__import__"])
def test_dangerous_builtins_are_refused(name):
    with pytest.raises(DataError, match=rf"'builtins\.{name}'"):
        load(f"cbuiltins\n{name}\n(S'1'\ntR.".encode())


def test_dotted_names_do_not_reach_into_allowed_objects():
    content = b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93."
    with pytest.raises(DataError, match=r"'numpy\.ndarray\.__init__'"):
        load(content)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">i2", "<f8", "?"])
def test_arrays_come_back_exactly(protocol, dtype):
    array = np.arange(12).astype(dtype).reshape(3, 4)
    for original in (array, np.asfortranarray(array), array[:0]):
        back = as_array(load(pickle.dumps(original, protocol=protocol)), "x")
        np.testing.assert_array_equal(back, original)
        assert back.dtype == original.dtype


def test_sparse_matrices_come_back_exactly():
    matrix = sp.csr_matrix(np.array([[0, 2, 0], [1, 0, 3]], dtype=np.float32))
    back = as_matrix(load(pickle.dumps(matrix, protocol=2), {**NUMPY_GLOBALS, **SPARSE_GLOBALS}), "x")
    np.testing.assert_array_equal(back.toarray(), matrix.toarray())


def test_a_sparse_matrix_with_an_index_out_of_range_is_an_error():
    matrix = sp.csr_matrix(np.eye(3, dtype=np.float32))
    matrix.indices[1] = 7
    loaded = load(pickle.dumps(matrix, protocol=2), {**NUMPY_GLOBALS, **SPARSE_GLOBALS})
    with pytest.raises(DataError, match="x: the sparse matrix is inconsistent"):
        as_matrix(loaded, "x")


def test_object_arrays_are_refused():
    with pytest.raises(DataError, match="only numbers"):
        load(pickle.dumps(np.array([{}, None], dtype=object), protocol=2))


def test_an_array_whose_buffer_does_not_fit_its_shape_is_refused():
    array = PickledArray()
    real = load(pickle.dumps(np.zeros(3, np.uint8), protocol=2))
    assert real.array.tolist() == [0, 0, 0]
    content = pickle.dumps(np.zeros(3, np.uint8), protocol=2).replace(b"K\x03\x85", b"K\x09\x85")
    with pytest.raises(DataError, match=r"shape \(9,\) needs 9 bytes"):
        load(content)
    with pytest.raises(DataError, match="expected an array"):
        as_array(array, "x")


def test_default_dictionaries_of_lists_are_read():
    graph = collections.defaultdict(list, {0: [1], 1: [0]})
    assert load(pickle.dumps(graph, protocol=2), CONTAINER_GLOBALS) == {0: [1], 1: [0]}


@dataclass
class Architecture:
    accuracy: float


class StandIn:
    pass


def test_a_global_can_be_redirected_to_a_stand_in():
    content = pickle.dumps({(0, 1): Architecture(0.5)}, protocol=4)
    table = load(content, {(Architecture.__module__, "Architecture"): StandIn})
    assert isinstance(table[0, 1], StandIn)
    assert table[0, 1].accuracy == 0.5


def test_a_file_cannot_change_the_class_it_is_given():
    """BUILD on the class itself, with a slot state, sets class attributes: it must only deface a copy."""
    module = StandIn.__module__.encode()
    content = b"\x80\x02c" + module + b"\nStandIn\nN}X\x05\x00\x00\x00pwnedK\x01s\x86b."
    load(content, {(StandIn.__module__, "StandIn"): StandIn})
    assert not hasattr(StandIn, "pwned")


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", pickle.dumps([1, 2, 3])[:-3], b"\x80\x04\x95\xff"])
def test_what_is_no_complete_pickle_is_one_clear_error(content):
    with pytest.raises(DataError, match=r"file\.pkl: not a readable pickle"):
        load(content)
