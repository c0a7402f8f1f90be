"""Rows in memory: consumed once, nothing half-written, errors that name row and column."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data.readers import frames
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError

pytest.importorskip("pyarrow")

SPEC = FeatureSpec((("y", "label"), ("x", "float"), ("c", "categorical")))


def parts(count, rows=10):
    """`count` dicts of columns, of which each must be gone before the third after it is made."""
    for i in range(count):
        yield {"y": np.arange(rows) % 2, "x": np.full(rows, i, np.float32), "c": [f"k{i}"] * rows}


def test_a_generator_is_consumed_as_it_is_read(tmp_path):
    """When the first shard is on the disk, most of the tables are not made yet."""
    made = []

    def counted():
        for i, part in enumerate(parts(200)):
            made.append(bool(list((tmp_path / "out" / ".prepare").glob("0*.npz"))) if i else False)
            yield part

    records = dlrm_tf.prepare(counted(), tmp_path / "out", spec=SPEC, shard_lines=100, threads=1)
    assert records.rows("train") + records.rows("test") == 2000
    assert records.vocabulary().keys("c") == [f"k{i}" for i in range(200)]
    assert made.index(True) < 60


def test_what_fails_leaves_nothing_and_starts_again(tmp_path):
    def broken():
        yield from parts(30)
        raise OSError("the database has gone")

    with pytest.raises(OSError, match="the database has gone"):
        dlrm_tf.prepare(broken(), tmp_path / "out", spec=SPEC, shard_lines=20)
    assert not (tmp_path / "out").exists()
    assert dlrm_tf.prepare(parts(3), tmp_path / "out", spec=SPEC, test_fraction=0).rows("train") == 30


def test_after_a_kill_the_same_call_starts_from_the_beginning(tmp_path):
    from dlrm_tf.data.workspace import Workspace

    expected = dlrm_tf.prepare(parts(9), tmp_path / "whole", spec=SPEC, shard_lines=20)
    killed = tmp_path / "out"

    class Kill(BaseException):
        pass

    def dying():
        yield from parts(8)
        raise Kill

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Kill):
        patch.setattr(Workspace, "remove", lambda workspace: None)  # as where the process is gone
        dlrm_tf.prepare(dying(), killed, spec=SPEC, shard_lines=20)
    assert list((killed / ".prepare").glob("0*.npz"))
    records = dlrm_tf.prepare(parts(9), killed, spec=SPEC, shard_lines=20)
    assert records.manifest == expected.manifest


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"y": [0, 1], "x": [1, 2], "c": ["a", 1.5]},
            "rows: row 1, c: wanted a category as str, bytes or a whole number, .*'1.5'",
        ),
        (
            {"y": [0, 1], "x": [1, 2], "c": [None, 5.0]},
            "rows: row 1, c: wanted a category .* Received '5.0' .*exactly as in the log",
        ),
        (
            {"y": [0, 1], "x": [1, 2], "c": np.array([1.0, 2.0])},
            "rows: column 'c': wanted texts or whole numbers; .* Received double",
        ),
        ({"y": [0, 1], "x": [1, "a", {}], "c": ["a", "b"]}, "rows: row 0, x and below: wanted a column of float values"),
        ({"y": [0, 1], "x": [1, 2, 3], "c": ["a", "b"]}, "rows: wanted columns of one length. Received 2 rows of y, 3 of x"),
        ({"y": [0, 1], "c": ["a", "b"]}, r"rows: wanted a column 'x' \(KeyError: 'x'\)"),
        ({"x": [0, 1], "c": ["a", "b"]}, "rows: wanted the label's column. Received x, c"),
        ({"y": [0, 1], "x": [[1, 2], [3, 4]], "c": ["a", "b"]}, "rows: column 'x': wanted numbers; .* Received list"),
        ({"y": [0, 1], "x": np.ones((2, 2)), "c": ["a", "b"]}, "rows: wanted one column 'x'"),
    ],
)
def test_wrong_tables(tmp_path, table, message):
    with pytest.raises(DataError, match=message):
        dlrm_tf.prepare(table, tmp_path / "out", spec=SPEC)
    assert not (tmp_path / "out").exists()


def test_inputs_of_other_kinds(tmp_path):
    with pytest.raises(DataError, match="wanted tables: DataFrames, Arrow tables or dicts of columns. Received int"):
        dlrm_tf.prepare(iter([1, 2]), tmp_path / "out", spec=SPEC)
    with pytest.raises(DataError, match="no good line among 0: the input is empty"):
        dlrm_tf.prepare(iter([]), tmp_path / "out", spec=SPEC)
    assert frames.open_frames("a.tsv", SPEC) is None
    assert frames.open_frames(["a.tsv", "b.tsv"], SPEC) is None
    assert not (tmp_path / "out").exists()


def test_python_values_are_the_keys_of_a_text(tmp_path):
    """None, NaN, pandas.NA; str, bytes, whole numbers of any type side by side; bytes that are no UTF-8."""
    pandas = pytest.importorskip("pandas")
    cells = ["a", b"a", 5, np.int8(5), None, float("nan"), pandas.NA, "", "\udcff", b"\xff", 12345678, "12345678"]
    table = pandas.DataFrame({"y": 1, "x": [0.5, None] * 6, "c": pandas.Series(cells, dtype=object)})
    table.index = range(12, 0, -1)  # not the position
    records = dlrm_tf.prepare(table, tmp_path / "out", spec=SPEC, test_fraction=0)
    assert records.numpy("train")[1][:, 0].tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4]
    assert records.vocabulary().keys("c") == ["a", "5", "", "\udcff", "12345678"]
    assert records.manifest["counts"]["missing"] == {"x": 6, "c": 4}
