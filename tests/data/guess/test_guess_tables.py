"""guess_spec of Parquet and Arrow files: their types say most."""

import numpy as np
import pytest
from test_guess_spec import KINDS, ROWS, columns

import dlrm_tf
from dlrm_tf.data.guess import tables
from dlrm_tf.errors import DataError

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
parquet = pytest.importorskip("pyarrow.parquet")


def typed(rows=ROWS):
    """The columns of the text log with the types that a table has for them."""
    table = columns(rows=rows)
    whole = ("clicked", "views", "age", "flag", "code", "C14", "user_id", "size", "amt", "version")
    found = {name: [int(cell) if cell.isdigit() else None for cell in table.pop(name)] for name in whole}
    prices = pa.array([float(cell) for cell in table.pop("price")], pa.float32())
    tags = [[tag for tag in cell.split("|") if tag] for cell in table.pop("tags")]
    found.update(price=prices, tags=tags, when=pa.array(range(rows), pa.timestamp("s")))
    found["model"] = pa.array(table.pop("model")).dictionary_encode()
    return pa.table({**found, **{name: pa.array([cell or None for cell in cells]) for name, cells in table.items()}})


def write(path, table, **options):
    (parquet.write_table if path.suffix == ".parquet" else feather.write_feather)(table, path, **options)
    return path


@pytest.mark.parametrize("name", ["log.parquet", "log.feather"])
def test_types_are_kept(tmp_path, name):
    guess = dlrm_tf.guess_spec(write(tmp_path / name, typed()))
    assert dict(guess.spec.columns) == {**KINDS, "when": "skip"}
    assert guess.spec.bags == {"tags": dlrm_tf.Bag("|", 3, pooling="mean")}
    assert (guess.sampled, guess.rows, guess.spec.header, guess.spec.missing) == (ROWS, ROWS, False, ())
    assert {column.name: column.missing for column in guess.columns}["views"] == columns()["views"].count("NULL") / ROWS
    records = dlrm_tf.prepare(tmp_path / name, tmp_path / "data", spec=guess.spec)
    assert records.rows("train") + records.rows("test") == ROWS


def test_numbers_in_texts_are_texts(tmp_path):
    """A table's reader takes no text for a number that the file does not call one."""
    table = pa.table({"label": [0, 1, 1], "n": ["1", "2", "3"]})
    assert dict(dlrm_tf.guess_spec(write(tmp_path / "log.parquet", table)).spec.columns)["n"] == "categorical"


def test_row_groups_all_over_a_large_file_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "SAMPLE_ROWS", 1600)
    rng = np.random.default_rng(0)
    late = [""] * 15_000 + ["x", "y"] * 2500
    table = pa.table({"y": rng.integers(0, 2, 20_000), "late": late, "a": rng.integers(0, 9, 20_000)})
    guess = dlrm_tf.guess_spec(write(tmp_path / "log.parquet", table, row_group_size=500))
    assert 1000 < guess.sampled <= 1600 and guess.rows == 20_000
    assert dict(guess.spec.columns) == {"y": "label", "late": "categorical", "a": "categorical"}
    assert {column.name: column.distinct.least for column in guess.columns}["late"] == 2


def test_files_of_one_log_have_one_form(tmp_path):
    first = write(tmp_path / "1.parquet", pa.table({"y": [0, 1], "a": ["x", "y"]}))
    second = write(tmp_path / "2.parquet", pa.table({"y": [0, 1], "b": ["x", "y"]}))
    with pytest.raises(DataError, match="2.parquet: wanted the columns of .*1.parquet, y, a. Received y, b"):
        dlrm_tf.guess_spec([first, second])
    (tmp_path / "3.csv").write_text("0,x\n1,y\n")
    with pytest.raises(DataError, match="3.csv: wanted a table, as .*1.parquet is"):
        dlrm_tf.guess_spec([first, tmp_path / "3.csv"])
    (tmp_path / "4.parquet").write_bytes(second.read_bytes()[:-9])
    with pytest.raises(DataError, match="4.parquet: wanted a whole Parquet file"):
        dlrm_tf.guess_spec(tmp_path / "4.parquet")
