"""Parquet, Arrow files and streams, and frames: the same folder, byte for byte, as of the same rows as text."""

import dataclasses
import decimal
import json
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import dlrm_tf
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.readers.open import open_readers
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
pq = pytest.importorskip("pyarrow.parquet")

SPEC = FeatureSpec(
    (("c", "categorical"), ("y", "label"), ("x", "float"), ("k", "categorical"), ("n", "int"), ("tags", "categorical")),
    bags={"tags": Bag("|", 3)},
)


def tree(folder) -> dict[str, bytes]:
    """All files of a folder by relative path; of the manifest all but the inputs' names in bad examples."""
    folder = pathlib.Path(folder)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(files["manifest.json"])
    del manifest["counts"]["bad_examples"]
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def write(table, path, kind, **options):
    """A table as a file of one of the formats."""
    if kind == "parquet":
        pq.write_table(table, path, **options)
    elif kind == "feather":
        feather.write_feather(table, str(path), **{"compression": "lz4", "chunksize": 7, **options})
    else:
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
    return path


key = st.one_of(
    st.none(), st.just(""), st.integers(0, 4).map("{:08x}".format), st.sampled_from(["ABCDEF01", "x", "é", "123456789"])
)
row = st.fixed_dictionaries(
    {
        "c": key,
        "y": st.sampled_from([0, 1, 1, 0, 2, None]),
        "x": st.one_of(st.none(), st.floats(width=32, allow_nan=False), st.just(float("inf"))),
        "k": st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([12345678, 2**40, -(2**63)])),
        "n": st.one_of(st.none(), st.integers(-5, 50), st.sampled_from([16777217, 2**62 + 1])),
        "tags": st.one_of(st.none(), st.lists(key.filter(lambda tag: tag is not None), min_size=1, max_size=5)),
    }
)
TYPES = pa.schema(
    [
        ("c", pa.string()),
        ("y", pa.int8()),
        ("x", pa.float32()),
        ("k", pa.int64()),
        ("n", pa.int64()),
        ("tags", pa.list_(pa.string())),
    ]
)
GOOD = {"c": "x", "y": 1, "x": 0.5, "k": 7, "n": 3, "tags": ["x"]}


def text_of(rows) -> bytes:
    """Rows as tab-separated text, missing cells empty."""
    cells = [
        ["" if cell is None else "|".join(cell) if isinstance(cell, list) else cell for cell in map(row.get, TYPES.names)]
        for row in rows
    ]
    return "".join("\t".join(map(str, line)) + "\n" for line in cells).encode()


@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(st.lists(row, max_size=30), st.data())
def test_the_same_rows_as_text(tmp_path_factory, rows, data):
    folder = tmp_path_factory.mktemp("tables")
    rows = [*rows, GOOD]
    (folder / "log.tsv").write_bytes(text_of(rows))
    options = {
        "spec": SPEC,
        "shard_lines": data.draw(st.integers(1, 12)),
        "min_count": data.draw(st.integers(1, 2)),
        "threads": 2,
        "max_bad_share": 1.0,
    }
    expected = tree(dlrm_tf.prepare(folder / "log.tsv", folder / "text", **options).folder)
    table = pa.Table.from_pylist(rows, TYPES).select(["n", "tags", "c", "y", "k", "x"])  # in another order
    kinds = {
        "parquet": {"row_group_size": data.draw(st.integers(1, 20)), "use_dictionary": data.draw(st.booleans())},
        "feather": {},
        "stream": {},
    }
    for kind, more in kinds.items():
        path = write(table, folder / kind, kind, **more)
        assert tree(dlrm_tf.prepare(path, folder / f"out-{kind}", **options).folder) == expected
    half = len(rows) // 2
    plain = {name: [row[name] for row in rows[:half]] for name in TYPES.names}
    frames = (part for part in (plain, table.slice(half)))
    assert tree(dlrm_tf.prepare(frames, folder / "frames", **options).folder) == expected


@pytest.fixture(scope="module")
def criteo(tmp_path_factory):
    """3,000 lines of the generator with some that are bad, as text and as a table of strings and integers."""
    folder = tmp_path_factory.mktemp("criteo")
    dlrm_tf.synth(folder / "log.tsv", 3000, seed=4)
    spec = dlrm_tf.data.spec.CRITEO
    names = [name for name, _ in spec.columns]
    lines = [line.split("\t") for line in (folder / "log.tsv").read_text().splitlines()]
    for at in (0, 700, 2999):
        lines[at][0] = "2"
    (folder / "log.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    cells = dict(zip(names, zip(*lines)))
    table = pa.table(
        {
            n: list(cells[n]) if kind == "categorical" else pa.array([int(c) if c else None for c in cells[n]])
            for n, kind in spec.columns
        }
    )
    return folder, table


OPTIONS = {"shard_lines": 700}


@pytest.fixture(scope="module")
def expected(criteo):
    folder, _ = criteo
    return tree(dlrm_tf.prepare(folder / "log.tsv", folder / "text", **OPTIONS).folder)


@pytest.mark.parametrize("pieces", [100, 1 << 16])
@pytest.mark.parametrize(
    "form", ["dictionary pages", "mixed pages", "plain", "delta", "dictionary type", "view", "pandas", "polars"]
)
def test_criteo(criteo, expected, tmp_path, monkeypatch, form, pieces):
    for module in ("arrow", "frames", "parquet"):
        monkeypatch.setattr(f"dlrm_tf.data.readers.{module}.PIECE_ROWS", pieces)
    _, table = criteo
    path = tmp_path / "t.parquet"
    names = [field.name for field in table.schema if field.type == pa.string()]
    if form == "dictionary pages":
        pq.write_table(table, path, row_group_size=1000, compression="zstd")
    elif form == "mixed pages":  # dictionaries that overflow
        pq.write_table(table, path, dictionary_pagesize_limit=2000, data_page_size=2000, write_batch_size=64)
    elif form == "plain":
        pq.write_table(table, path, use_dictionary=False, data_page_version="2.0", data_page_size=5000)
    elif form == "delta":
        encodings = {name: ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")[i % 2] for i, name in enumerate(names)}
        pq.write_table(table, path, use_dictionary=False, column_encoding=encodings)
    elif form == "dictionary type":
        coded = [table[n].dictionary_encode() if n in names else table[n] for n in table.column_names]
        feather.write_feather(pa.table(coded, table.column_names), str(path))
    elif form == "view":
        views = [table[n].cast(pa.string_view()) if n in names else table[n] for n in table.column_names]
        with pa.ipc.new_file(str(path), pa.table(views, table.column_names).schema) as file:
            file.write_table(pa.table(views, table.column_names))
    else:
        path = table.to_pandas() if form == "pandas" else pytest.importorskip("polars").from_arrow(table)
    records = dlrm_tf.prepare(path, tmp_path / "out", **OPTIONS)
    assert tree(records.folder) == expected
    source = "rows" if form in ("pandas", "polars") else path
    group = "" if form in ("dictionary type", "view", "pandas", "polars") else " (row group 0)"
    examples = records.manifest["counts"]["bad_examples"]
    assert examples[:2] == [f"{source}: row {at}{group}: column label: wanted 0 or 1. Received 2" for at in (0, 700)]


CHILD = """
import os, signal, sys
import dlrm_tf
from dlrm_tf.data.readers import arrow, parquet
arrow.PIECE_ROWS = parquet.PIECE_ROWS = 150
left = int(sys.argv[3])
replace = os.replace
def dying(*args):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(*args)
os.replace = dying
dlrm_tf.prepare(sys.argv[1], sys.argv[2], shard_lines=700)
"""


def test_killed_in_the_middle_of_a_row_group(criteo, expected, tmp_path, monkeypatch):
    """Shards of 700 rows end within row groups of 1,000; the rerun reads no row group that is done."""
    from dlrm_tf.data.readers.parquet import ParquetReader

    path = tmp_path / "t.parquet"
    pq.write_table(criteo[1], path, row_group_size=1000)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path), str(tmp_path / "out"), "6"])
    assert done.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out" / ".prepare").glob("0*.npz"))) == 2
    read, group = [], ParquetReader._group
    monkeypatch.setattr(
        ParquetReader, "_group", lambda reader, number, *more: read.append(number) or group(reader, number, *more)
    )
    assert tree(dlrm_tf.prepare(path, tmp_path / "out", **OPTIONS).folder) == expected
    assert read == [1, 2]


ONE = FeatureSpec((("y", "label"), ("x", "float"), ("n", "int"), ("c", "categorical")))
ROWS = {"y": [0, 1, 1], "x": [1.5, None, 2.0], "n": [None, 3, 0], "c": ["7", None, "12345678"]}
TEXT = b"0\t1.5\t\t7\n1\t\t3\t\n1\t2.0\t0\t12345678\n"


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    (folder / "log.tsv").write_bytes(TEXT)
    return tree(dlrm_tf.prepare(folder / "log.tsv", folder / "out", spec=ONE).folder)


DECIMALS = [None if x is None else decimal.Decimal(str(x)) for x in ROWS["x"]]
INTEGERS = [None if key is None else int(key) for key in ROWS["c"]]


@pytest.mark.parametrize("kind", ["parquet", "feather", "stream"])
@pytest.mark.parametrize(
    ("name", "cells", "type"),
    [
        *[("c", INTEGERS, type) for type in (pa.int32(), pa.int64(), pa.uint32(), pa.uint64())],
        *[("c", ROWS["c"], type) for type in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())],
        ("c", ROWS["c"], pa.string_view()),
        ("c", ROWS["c"], pa.binary_view()),
        ("c", ROWS["c"], pa.dictionary(pa.int8(), pa.string())),
        ("c", INTEGERS, pa.dictionary(pa.uint16(), pa.int64())),
        *[("y", ROWS["y"], type) for type in (pa.bool_(), pa.int8(), pa.uint64(), pa.float64(), pa.decimal128(3, 1))],
        ("y", ["0", "1", "1"], pa.string()),
        *[("x", ROWS["x"], type) for type in (pa.float16(), pa.float32(), pa.float64())],
        ("x", DECIMALS, pa.decimal128(9, 2)),
        ("x", DECIMALS, pa.decimal256(40, 3)),
        ("x", ["1.5", "", "2.0"], pa.string()),
        ("x", ["1.5", None, "2.0"], pa.dictionary(pa.int32(), pa.string())),
        *[("n", ROWS["n"], type) for type in (pa.int8(), pa.int16(), pa.uint8(), pa.uint64(), pa.float64())],
        ("n", ["", "3", "0"], pa.large_string()),
    ],
    ids=str,
)
def test_types(three, tmp_path, kind, name, cells, type):
    if isinstance(type, pa.DataType) and pa.types.is_float16(type):
        cells = [None if cell is None else np.float16(cell) for cell in cells]
    if type == pa.bool_():
        cells = list(map(bool, cells))
    array = (
        pa.array(cells, type.value_type).dictionary_encode().cast(type) if pa.types.is_dictionary(type) else pa.array(cells, type)
    )
    table = pa.table({**ROWS, name: array})
    assert tree(dlrm_tf.prepare(write(table, tmp_path / "t", kind), tmp_path / "out", spec=ONE).folder) == three


def test_columns_of_nulls_and_fixed_bytes(tmp_path):
    table = pa.table({**ROWS, "x": pa.nulls(3), "c": pa.array([b"ab", b"cd", None], pa.binary(2))})
    records = dlrm_tf.prepare(write(table, tmp_path / "t", "feather"), tmp_path / "out", spec=ONE)
    assert records.vocabulary().keys("c") == ["ab", "cd", ""]
    assert records.manifest["counts"]["missing"] == {"x": 3, "n": 1, "c": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": [1.0, 2.0, 3.0]}, "column 'c': wanted texts or whole numbers; write them as texts exactly as .* Received double"),
        ({"c": DECIMALS}, "column 'c': wanted texts or whole numbers; .* Received decimal128"),
        ({"c": [True, False, True]}, "column 'c': wanted texts or whole numbers; write them as texts. Received bool"),
        ({"c": pa.array([0, 1, 2], pa.timestamp("s"))}, "column 'c': wanted texts .* Received timestamp"),
        ({"c": [["a"], ["b"], []]}, "column 'c': wanted one key a row; a bag in the feature spec has several. Received list"),
        ({"c": [{"a": 1}] * 3}, "column 'c': wanted texts .* Received struct<a: int64>"),
        ({"x": pa.array([0, 1, 2], pa.date32())}, "column 'x': wanted numbers; write them as numbers. Received date32"),
        ({"y": [["0"]] * 3}, "column 'y': wanted 0 or 1; write them as numbers. Received list"),
        ({"n": None}, "wanted a column 'n'"),
    ],
)
def test_a_wrong_type_is_told_before_a_row_is_read(tmp_path, change, message):
    columns = {name: column for name, column in {**ROWS, **change}.items() if column is not None}
    for kind in ("parquet", "feather"):
        path = write(pa.table(columns), tmp_path / kind, kind)
        with pytest.raises(DataError, match=f"^{path}: {message}"):
            dlrm_tf.prepare(path, tmp_path / "out", spec=ONE)
    with pytest.raises(DataError, match=f"^rows: {message}"):
        dlrm_tf.prepare(pa.table(columns), tmp_path / "out", spec=ONE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0, float("inf"), 2.0]}, "column x: wanted a finite number. Received inf"),
        ({"x": [1.0, 1e39, 2.0]}, "column x: wanted a finite number. Received 1e+39"),
        ({"x": ["1", "a", "2"]}, "column x: wanted a finite number. Received 'a'"),
        ({"n": [1.0, 2.5, 2.0]}, "column n: wanted an integer. Received 2.5"),
        ({"y": [0, None, 1]}, "column y: wanted 0 or 1. Received None"),
        ({"y": [0.0, 0.5, 1.0]}, "column y: wanted 0 or 1. Received 0.5"),
    ],
)
def test_bad_rows_are_skipped_and_counted_or_stop(tmp_path, change, message):
    path = write(pa.table({**ROWS, **change}), tmp_path / "t", "parquet")
    records = dlrm_tf.prepare(path, tmp_path / "out", spec=ONE, test_fraction=0)
    assert records.rows("train") == 2
    assert records.vocabulary().keys("c") == ["7", "12345678"]
    assert records.manifest["counts"]["bad_examples"] == [f"{path}: row 1 (row group 0): {message}"]
    with pytest.raises(DataError) as error:
        dlrm_tf.prepare(path, tmp_path / "stop", spec=ONE, on_bad_line="stop")
    assert str(error.value).startswith(f"{path}: row 1 (row group 0): {message}")


WEIGHTED = FeatureSpec(
    (("y", "label"), ("c", "categorical"), ("tags", "categorical")), bags={"tags": Bag("|", 2, weight_separator=":")}
)


def test_bags_with_weights(tmp_path):
    log = tmp_path / "log.tsv"
    log.write_text("0\ta\tp:0.5|q:2\n1\tb\t\n1\ta\tp:1|p:3|q:9\n0\ta\tr:-1\n")
    expected = tree(dlrm_tf.prepare(log, tmp_path / "text", spec=WEIGHTED).folder)
    base = {"y": [0, 1, 1, 0], "c": ["a", "b", "a", "a"]}
    lists = {"tags": [["p", "q"], [], ["p", "p", "q"], ["r"]], "tags_weights": [[0.5, 2], None, [1, 3, 9], [-1]]}
    texts = {"tags": ["p:0.5|q:2", "", "p:1|p:3|q:9", "r:-1"]}
    coded = {"tags": pa.array(texts["tags"]).dictionary_encode()}
    for i, columns in enumerate((lists, texts, coded)):
        path = write(pa.table({**base, **columns}), tmp_path / f"{i}.parquet", "parquet")
        records = dlrm_tf.prepare(path, tmp_path / f"out{i}", spec=WEIGHTED)
        assert tree(records.folder) == expected
        (example,) = records.manifest["counts"]["bad_examples"]
        assert "row 3 (row group 0): column tags: wanted a weight that is a finite number from 0 on. Received" in example
    with pytest.raises(DataError, match="wanted a column 'tags_weights'. Received y, c, tags"):
        dlrm_tf.prepare(pa.table({**base, "tags": lists["tags"]}), tmp_path / "none", spec=WEIGHTED)
    wrong = {**base, **lists, "tags_weights": [[0.5], None, [1, 3, 9], [None]]}
    examples = dlrm_tf.prepare(pa.table(wrong), tmp_path / "wrong", spec=WEIGHTED).manifest["counts"]["bad_examples"]
    assert [example.split("Received ")[1] for example in examples] == ["1", "nan"]


@pytest.mark.parametrize("times", [1, 200])  # few rows and many are looked up in other ways
def test_arrow_columns_through_the_encoder(times):
    vocabulary = dlrm_tf.Vocabulary.from_keys({"c": ["", "7", "12345678"], "k": ["é", "-3"], "tags": ["a", "", "00000001"]})
    spec = dataclasses.replace(SPEC, columns=(*SPEC.columns[:3], ("k", "categorical"), ("n", "int"), ("tags", "categorical")))
    plain = {
        "x": [1.0, None, 2.0, 0.0],
        "n": [1, 2, None, 4],
        "c": [7, None, 12345678, 5],
        "k": ["é", "-3", None, "z"],
        "tags": [["a", "b", "00000001", "a"], [], None, [""]],
    }
    columns = {name: cells * times for name, cells in plain.items()}
    encoder = Encoder(spec, vocabulary)
    expected = encoder.columns(columns)
    for table in (pa.table(columns), pa.table({**columns, "k": pa.array(columns["k"]).dictionary_encode()}).combine_chunks()):
        for got, wanted in zip(encoder.columns(table), expected):
            np.testing.assert_array_equal(got, wanted)
        parts = [np.concatenate(part) for part in zip(*encoder.batches(table, 300))]
        for got, wanted in zip(parts, expected):
            np.testing.assert_array_equal(got, wanted)


def test_a_file_is_told_by_its_first_bytes(tmp_path):
    with pytest.raises(DataError, match="wanted a Parquet or an Arrow file. Received an encrypted Parquet file"):
        (tmp_path / "e").write_bytes(b"PARE" + bytes(100))
        open_readers(tmp_path / "e", ONE)
    with pytest.raises(DataError, match="Received a Feather file of version 1"):
        feather.write_feather(pa.table({"y": [1]}), str(tmp_path / "f"), version=1)
        open_readers(tmp_path / "f", ONE)


def test_labels_and_markers_of_missing_cells_are_those_of_a_text(tmp_path):
    spec = dataclasses.replace(ONE, missing=("NULL",), labels="-1/1")
    (tmp_path / "log.tsv").write_text("-1\tNULL\t3\ta\n1\t2\tNULL\tNULL\n1\t\t4\tb\n")
    expected = tree(dlrm_tf.prepare(tmp_path / "log.tsv", tmp_path / "text", spec=spec).folder)
    columns = {"y": [-1, 1, 1], "x": ["NULL", "2", None], "n": ["3", "NULL", "4"], "c": ["a", "NULL", "b"]}
    coded = {**columns, "c": pa.array(columns["c"]).dictionary_encode()}
    for i, table in enumerate((pa.table(columns), pa.table(coded))):
        path = write(table, tmp_path / f"{i}.parquet", "parquet")
        assert tree(dlrm_tf.prepare(path, tmp_path / f"out{i}", spec=spec).folder) == expected
