"""Import of upstream's cat_count_dict.pkl, and pickles that ask for anything else."""

import collections
import os
import pickle

import pytest

from dlrm_tf.data.upstream import load_counts
from dlrm_tf.errors import DataError


def counts(*columns):
    """Upstream's structure: a dict of a defaultdict(int) for each column."""
    result = {}
    for i, column in enumerate(columns):
        result[i] = collections.defaultdict(int)
        for key in column:
            result[i][key] += 1
    return result


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_ids_are_the_insertion_order(tmp_path, protocol):
    path = tmp_path / "cat_count_dict.pkl"
    path.write_bytes(pickle.dumps(counts(["0000000b", "", "0000000a", ""], ["x"]), protocol))
    vocabulary = load_counts(path, ("C1", "C2"))
    assert vocabulary.keys("C1") == ["0000000b", "", "0000000a"]
    assert vocabulary.keys("C2") == ["x"]


class _Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "hostile",
    [
        _Runs(os.system, "touch PWNED"),
        _Runs(eval, "open('PWNED', 'w')"),
        _Runs(getattr, dict, "fromkeys"),
        _Runs(collections.OrderedDict),
        {0: collections.defaultdict(list, {"a": 1})},
        {0: {"a": _Runs(os.system, "touch PWNED")}},
    ],
)
def test_anything_else_is_refused_and_not_run(tmp_path, monkeypatch, hostile):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(DataError, match="refused: it asks for"):
        load_counts(path, ("C1",))
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a pickle"),
        (b"label\tI1", "not a pickle"),
        (pickle.dumps(counts(["a"]))[:-4], "not a pickle"),
        (pickle.dumps([1]), "opcode 93"),
        (pickle.dumps({0: 1}), "wanted a dict of a dict"),
        (pickle.dumps(counts(["a"], ["b"])), "wanted 1 columns. Received 2"),
        (pickle.dumps(counts([7])), "C1: wanted keys of type str. Received one of type int"),
    ],
)
def test_other_content_is_refused(tmp_path, content, message):
    path = tmp_path / "counts.pkl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_counts(path, ("C1",))


def test_nested_tuples_are_refused_before_they_cost_anything(tmp_path):
    """Ten references a level: spelled out, or hashed as a key, some 200 bytes would take minutes, ten more levels for ever."""
    nested = b"\x80\x02(" + b"K\x01" * 10 + b"tq\x00"
    for level in range(1, 20):
        nested += b"0(" + b"".join(b"h" + bytes([level - 1]) for _ in range(10)) + b"tq" + bytes([level])
    path = tmp_path / "counts.pkl"
    for use in (b"0cbuiltins\nstr\nh\x13\x85R.", b"0}h\x13K\x01s."):
        path.write_bytes(nested + use)
        with pytest.raises(DataError, match="it holds a tuple"):
            load_counts(path, ("C1",))
