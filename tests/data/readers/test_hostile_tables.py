"""Damaged and hostile files of tables: one line, in bounded memory."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data.readers import parquet_pages
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
pq = pytest.importorskip("pyarrow.parquet")

SPEC = FeatureSpec((("y", "label"), ("c", "categorical")))
ROWS = {"y": [0, 1] * 500, "c": [f"key{i % 50}" for i in range(1000)]}


def file_of(path, kind):
    if kind == "parquet":
        pq.write_table(pa.table(ROWS), path, row_group_size=300, compression="snappy")
    else:
        feather.write_feather(pa.table(ROWS), str(path), compression="zstd", chunksize=300)
    return path


def refused(path, message="", **options) -> str:
    """The one line that prepare ends with; nothing is left."""
    out = path.parent / "out"
    with pytest.raises(DataError) as error:
        dlrm_tf.prepare(path, out, spec=SPEC, **options)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))
    assert re.search(message, str(error.value)), str(error.value)
    assert not out.exists()
    return str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_truncated_at_every_place(tmp_path, kind):
    content = file_of(tmp_path / "whole", kind).read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(8, len(content), max(1, len(content) // 60)), len(content) - 1]:
        cut.write_bytes(content[:length])
        refused(cut, "without its end|damaged")


@pytest.mark.parametrize("kind", ["parquet", "feather"])
def test_changed_bytes_give_rows_or_one_line(tmp_path, kind):
    content = bytearray(file_of(tmp_path / "whole", kind).read_bytes())
    rng = np.random.default_rng(5)
    refusals = 0
    for i in range(60):
        changed = bytearray(content)
        for at in rng.integers(4, len(content), 4):
            changed[at] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
        path = tmp_path / f"{i}"
        path.write_bytes(changed)
        try:
            dlrm_tf.prepare(path, tmp_path / f"out{i}", spec=SPEC)
        except DataError as e:
            refusals += 1
            assert "\n" not in str(e)
            assert not (tmp_path / f"out{i}").exists()
    assert refusals > 5


def test_footers(tmp_path):
    content = file_of(tmp_path / "whole", "parquet").read_bytes()
    length = len(content)
    for footer in (length, 2**31 - 1, 2**32 - 1):
        (tmp_path / "f").write_bytes(content[:-8] + footer.to_bytes(4, "little") + b"PAR1")
        refused(
            tmp_path / "f", f"wanted a footer of at most 64 MB within the file of {length:,} bytes. Received {footer:,} bytes"
        )
    (tmp_path / "f").write_bytes(content[:-8] + (100).to_bytes(4, "little") + b"PAR1")
    refused(tmp_path / "f", "damaged Parquet file")
    (tmp_path / "f").write_bytes(b"PAR1")
    refused(tmp_path / "f", "without its end")
    (tmp_path / "f").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    refused(tmp_path / "f", "damaged Parquet file")


def test_a_file_cut_while_it_is_read(tmp_path):
    for kind in ("parquet", "feather"):
        path = file_of(tmp_path / kind, kind)
        (reader,) = dlrm_tf.data.readers.open.open_readers(path, SPEC)
        pieces = reader.pieces()
        next(pieces)
        os.truncate(path, 200)
        with pytest.raises(DataError, match=f"^{path}: .*(damaged|within the file)"):
            list(pieces)


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def page_header(kind=0, unpacked=10, packed=10, values=3, encoding=0) -> bytes:
    """A page header in Thrift's compact protocol, written by hand from parquet.thrift."""

    def i32(value):
        return b"\x15" + varint(value << 1 ^ value >> 63)

    inner = {0: b"\x2c", 2: b"\x4c"}[kind] + i32(values) + i32(encoding) + (i32(3) + i32(3) if kind == 0 else b"") + b"\0"
    return i32(kind) + i32(unpacked) + i32(packed) + inner + b"\0"


def test_pages_are_read_by_hand(tmp_path):
    parts = [
        page_header(2, 400, 20, 7) + bytes(20),
        page_header(0, 1000, 30, 50, 8) + bytes(30),
        page_header(0, 60, 60, 3, 0) + bytes(60),
    ]
    path = tmp_path / "pages"
    path.write_bytes(b"PAR1" + b"".join(parts))
    with open(path, "rb") as file:
        pages = parquet_pages.read_pages(file, 4, sum(map(len, parts)))
    wanted = {"values": 53, "dictionary": 400, "dictionary_values": 7, "largest": 1030, "densest": 20.0}
    assert {name: getattr(pages, name) for name in wanted} == wanted
    assert (pages.coded, pages.coded_at_first, pages.prefixed, pages.others) == (False, True, False, 0)


def header_place(content: bytes, unpacked: int, packed: int) -> int:
    """Where a page's sizes stand in a file: type, two sizes."""
    wanted = b"\x15" + varint(unpacked << 1) + b"\x15" + varint(packed << 1)
    assert content.count(wanted) == 1
    return content.index(wanted)


@pytest.mark.parametrize("stated", [2**31 - 1, 2**30, -5])
def test_a_page_that_states_another_size(tmp_path, stated):
    """Its header says so, the footer does not."""
    path = tmp_path / "p"
    table = pa.table({"y": [0, 1, 0, 1], "c": ["a" * 100, "b" * 90, "c" * 80, "d" * 70]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    content = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    start = column.data_page_offset
    with open(path, "rb") as file:
        header, size = parquet_pages._header(file, start, len(content))
    place = header_place(content, header[2], header[3])
    old = b"\x15" + varint(header[2] << 1)
    new = b"\x15" + varint(stated << 1 if stated >= 0 else -stated * 2 - 1)
    # A statement that is longer pushes the page on: the chunk has room, as its end is cut instead.
    longer = len(new) - len(old)
    changed = content[:place] + new + content[place + len(old) :]
    changed = changed[: start + column.total_compressed_size] + content[start + column.total_compressed_size :]
    path.write_bytes(changed)
    message = "pages and dictionaries of at most 256 MB" if stated > 0 and not longer else "row group 0"
    refused(path, message)


MEASURED = r"""
import re, sys
import dlrm_tf
from dlrm_tf.data.spec import FeatureSpec
import pyarrow.parquet, pyarrow.feather
kinds = [("y", "label"), ("c", "categorical")]
def peak():  # not ru_maxrss, which a child has of its parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
before = peak()
spec = FeatureSpec(tuple(kinds), bags={"c": dlrm_tf.Bag("|", 4)} if sys.argv[3] == "bag" else {})
try:
    dlrm_tf.prepare(sys.argv[1], sys.argv[2], spec=spec, threads=2)
    print("done")
except dlrm_tf.errors.DataError as e:
    print(e)
print((peak() - before) >> 10)
"""


def measured(path, bag=False) -> tuple[str, int]:
    """What prepare says of a file in a process of its own, and by how many MB its memory grew."""
    command = [sys.executable, "-c", MEASURED, str(path), str(path) + ".out", "bag" if bag else ""]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *said, megabytes = done.stdout.splitlines()
    return "\n".join(said), int(megabytes)


def label(rows):
    return pa.array(np.zeros(rows, np.int8))


def write(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.slow
def test_bombs(tmp_path):
    """Files of kilobytes that would be gigabytes."""
    rows = 1 << 18
    # One value of 8 MB for every row: 2 TB as texts.
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * (8 << 20)]))
    path = write(
        tmp_path / "dictionary.parquet", {"y": label(rows), "c": one}, compression="zstd", dictionary_pagesize_limit=1 << 30
    )
    said, megabytes = measured(path)
    assert path.stat().st_size < 100_000
    assert said == "done" and megabytes < 1024
    # Texts of 8 MB, each in a page of its own.
    texts = pa.array(["x" * (8 << 20)] * 50)
    path = write(
        tmp_path / "pages.parquet",
        {"y": label(50), "c": texts},
        compression="zstd",
        use_dictionary=False,
        data_page_size=1,
        write_batch_size=1,
    )
    said, megabytes = measured(path)
    assert path.stat().st_size < 1_000_000
    assert said == "done" and megabytes < 1024
    # One text of 300 MB.
    path = write(tmp_path / "text.parquet", {"y": label(1), "c": ["x" * (300 << 20)]}, compression="zstd", write_statistics=False)
    said, megabytes = measured(path)
    assert "row group 0: wanted pages and dictionaries of at most 256 MB at a time. Received" in said and megabytes < 300
    # Each text is the one before and a character more.
    path = tmp_path / "prefix.parquet"
    texts = pa.array(["x" * (1 << 20)] * 600)
    write(
        path, {"y": label(600), "c": texts}, use_dictionary=False, column_encoding={"c": "DELTA_BYTE_ARRAY"}, compression="zstd"
    )
    said, megabytes = measured(path)
    assert path.stat().st_size < 100_000
    assert said == "done" and megabytes < 1024


@pytest.mark.slow
def test_bombs_of_lists_and_nulls(tmp_path):
    # A bag of 100 million nulls in one row.
    items = 100_000_000
    bag = pa.LargeListArray.from_arrays(pa.array([0, items]), pa.nulls(items, pa.int8()))
    path = write(tmp_path / "list.parquet", {"y": label(1), "c": bag}, compression="zstd")
    said, megabytes = measured(path, bag=True)
    assert path.stat().st_size < 100_000
    assert "wanted at most 67,108,864 items of lists in a row group. Received 100,000,000" in said and megabytes < 300
    # 20 million rows of null, all bad: in pieces.
    rows = 20_000_000
    path = write(
        tmp_path / "nulls.parquet", {"y": pa.nulls(rows, pa.int8()), "c": pa.nulls(rows, pa.string())}, row_group_size=rows
    )
    assert path.stat().st_size < 100_000
    (reader,) = dlrm_tf.data.readers.open.open_readers(path, SPEC)
    piece = next(reader.pieces())
    assert sum(array.nbytes for array in piece.content.values()) < 2_000_000


@pytest.mark.slow
def test_bombs_of_arrow(tmp_path):
    path = tmp_path / "bomb.feather"
    feather.write_feather(pa.table({"y": label(1), "c": pa.array(["x" * (1200 << 20)])}), str(path), compression="zstd")
    said, megabytes = measured(path)
    assert "wanted a record batch of at most 1024 MB. Received 1,258," in said and megabytes < 300
    # A view of the same 20 MB in every row: 1.3 TB as texts.
    rows = 65536
    views = np.zeros((rows, 4), np.int32)
    views[:, 0], views[:, 1] = 20 << 20, int.from_bytes(b"xxxx", "little")
    array = pa.Array.from_buffers(pa.binary_view(), rows, [None, pa.py_buffer(views.tobytes()), pa.py_buffer(b"x" * (20 << 20))])
    table = pa.table({"y": label(rows), "c": array})
    with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table)
    said, megabytes = measured(path)
    assert "wanted texts of at most 256 MB in 65,536 rows. Received 1,374,389,534,720 bytes" in said and megabytes < 300


def test_a_schema_of_many_columns(tmp_path):
    """Those that the spec does not name are not looked at."""
    columns = {"y": [0, 1], "c": ["a", "b"], **{f"column {i}": [1, 2] for i in range(5000)}}
    path = write(tmp_path / "wide.parquet", columns, compression="none", use_dictionary=False)
    assert dlrm_tf.prepare(path, tmp_path / "out", spec=SPEC, test_fraction=0).rows("train") == 2
    with pytest.raises(DataError, match="wanted a column 'z'. Received y, c, column 0, .*, column 17, …$"):
        dlrm_tf.prepare(path, tmp_path / "z", spec=FeatureSpec((("y", "label"), ("z", "categorical"))))
