"""What is never silently wrong: labels, markers of missing cells, quotes that nobody spoke of, and too many bad lines."""

import dataclasses

import numpy as np
import pytest

from dlrm_tf import prepare
from dlrm_tf.cli.main import main
from dlrm_tf.data.bad_lines import BadLines
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import DataError

SPEC = FeatureSpec((("y", "label"), ("n", "int"), ("x", "float"), ("c", "categorical"), ("d", "categorical")))


@pytest.mark.parametrize(
    ("labels", "cells", "expected", "bad"),
    [
        ("0/1", ["0", "1", "0.0", "1.0", "1e0", "+1"], [0, 1, 0, 1, 1, 1], []),
        ("0/1", ["0", "-1", "2", "", "0.5", "1.00", "nan", ".0"], [0, 1, 0], [1, 2, 3, 4, 6]),
        ("-1/1", ["-1", "1", "-1.0", "1.0"], [0, 1, 0, 1], []),
        ("-1/1", ["-1", "0", "1", "-2", "0.0"], [0, 1], [1, 3, 4]),
    ],
)
def test_labels(labels, cells, expected, bad):
    text = "".join(f"{cell}\t1\t2\ta\tb\n" for cell in cells).encode()
    block = parse_block(text, dataclasses.replace(SPEC, labels=labels))
    assert block.label.tolist() == expected
    wanted = labels.replace("/", " or ")
    assert block.bad == [(i, f"column 1 (y): wanted {wanted}. Received {cells[i]!r}") for i in bad]


def test_markers_of_missing_cells():
    """They make empty cells of numbers and categories, whole ones only; a label can't be missing."""
    markers = ("NULL", r"\N", "not available at all", "nan")
    spec = dataclasses.replace(SPEC, missing=markers)
    rows = [
        "1\tNULL\t\\N\tNULL\tNULLS",
        "1\tnan\tnot available at all\tnot available at all\tnot available at alL",
        "1\t3\t4\t\\N\tu",
    ]
    marked = parse_block("\n".join(rows).encode(), spec)
    empty = parse_block(b"1\t\t\t\tNULLS\n1\t\t\t\tnot available at alL\n1\t3\t4\t\tu\n", SPEC)
    for field in dataclasses.fields(marked):
        np.testing.assert_equal(getattr(marked, field.name), getattr(empty, field.name))
    assert parse_block(b"NULL\t1\t2\ta\tb\n", spec).bad == [(0, "column 1 (y): wanted 0 or 1. Received 'NULL'")]


def test_a_bag_is_missing_as_a_whole():
    from dlrm_tf.data.bag import Bag

    spec = dataclasses.replace(SPEC, missing=("NULL",), bags={"c": Bag("|", 3)})
    keys = parse_block(b"1\t1\t1\tNULL\t\n1\t1\t1\ta|NULL\t\n", spec).bags[0].keys
    assert keys.empty.tolist() == [True, False, False]
    assert keys.odd == [(1, b"a"), (2, b"NULL")]


def test_quotes_that_nobody_spoke_of():
    text = b'1\t1\t1\t"a"\tb\n0\t1\t1\ta "b"\t"b\n1\t1\t1\t"\t""\n'
    block = parse_block(text, SPEC)
    wanted = r"""wanted no double quotes around a category ("quote" in the spec says what they are, "\"" around fields, "" a """
    assert block.bad == [
        (0, f"column 4 (c): {wanted}part of them). Received '\"a\"'"),
        (2, f"column 5 (d): {wanted}part of them). Received '\"\"'"),
    ]
    part = parse_block(text, dataclasses.replace(SPEC, quote=""))
    assert (part.bad, part.odd[0]) == ([], [(0, b'"a"'), (1, b'a "b"'), (2, b'"')])
    around = parse_block(text, dataclasses.replace(SPEC, quote='"'))
    assert (around.odd, [line for line, _ in around.bad]) == ([[(0, b"a")], [(0, b"b")]], [1, 2])


def log_of(path, rows, count):
    """The rows one after the other, `count` lines."""
    path.write_bytes(b"".join(rows[i % len(rows)] + b"\n" for i in range(count)))
    return path


GOOD = b"1\t2\t3\ta\tb"


@pytest.mark.parametrize(
    ("rows", "count", "bad", "said"),
    [
        (
            [b"-1\t2\t3\ta\tb", GOOD],
            100,
            "50 of 100 (50.0%), 50 of them: column 1 (y): wanted 0 or 1",
            "--labels -1/1 takes such",
        ),
        (
            [GOOD, b"1\t\\N\t3\ta\tb", b"0\tNULL\tx\ta\tb", b"0\t\\N\tx\ta\tb", b"1\t1\tnan\ta\tb"],
            50,
            "40 of 50 (80.0%), 30 of them: column 2 (n): wanted an integer",
            r"--missing '\N' takes such cells as empty",
        ),
        (
            [GOOD, b'1\t2\t3\t"a"\tb'],
            40,
            "20 of them: column 4 (c): wanted no double quotes",
            '"quote" in the spec',
        ),
        ([GOOD, b"1\t2.5\t3\ta\tb"], 40, "column 2 (n): wanted an integer. For", '"float" instead of "int"'),
        ([GOOD, b"1,2,3,a,b"], 40, "20 of them: wanted 5 fields", "separator, quote and columns"),
        ([b"1,2,3,a,b"], 10, "10 of 10 (100.0%)", "separator, quote and columns"),
        ([GOOD] * 99 + [b""] * 2, 606, "12 of 606 (2.0%)", "--max-bad-share allows more"),
    ],
)
def test_too_many_bad_lines(rows, count, bad, said, tmp_path):
    log = log_of(tmp_path / "log", rows, count)
    with pytest.raises(DataError) as error:
        prepare(log, tmp_path / "out", spec=SPEC)
    assert str(error.value).startswith("wanted at most 0.01 of the lines bad. Received ")
    assert bad in str(error.value) and f"For example {log}:" in str(error.value) and said in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_few_bad_lines_are_passed_over(tmp_path):
    """Up to the share, and up to nine whatever the share; none with a share of 0."""
    for rows, count in (([GOOD] * 99 + [b"bad"], 1000), ([GOOD, b"bad"], 18), ([GOOD, b"bad"], 3)):
        counts = prepare(log_of(tmp_path / "log", rows, count), tmp_path / f"out{count}", spec=SPEC).manifest["counts"]
        assert counts["bad_lines"] == count // len(rows)
    with pytest.raises(DataError, match="wanted at most 0 of the lines bad. Received 1 of 3 "):
        prepare(tmp_path / "log", tmp_path / "none", spec=SPEC, max_bad_share=0)
    half = log_of(tmp_path / "log", [GOOD, b"bad"], 40)
    assert prepare(half, tmp_path / "half", spec=SPEC, max_bad_share=0.5).manifest["counts"]["bad_lines"] == 20


def test_it_stops_early(tmp_path, monkeypatch):
    """After the first shard that has too many, on any number of threads; a resumed job counts what it did before."""
    from dlrm_tf.data.scan import Scan

    log = log_of(tmp_path / "log", [GOOD, GOOD, GOOD, b"bad"], 4000)
    for threads in (1, 3):
        with pytest.raises(DataError, match=r"Received 50 of 200 \(25.0%\)"):
            prepare(log, tmp_path / "out", spec=SPEC, shard_lines=200, threads=threads)
    finish = Scan._finish_shard

    def interrupted(scan, *args):
        if len(scan.notes) == 1:
            raise KeyboardInterrupt
        return finish(scan, *args)

    monkeypatch.setattr(Scan, "_finish_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(log, tmp_path / "out", spec=SPEC, shard_lines=16)  # four bad lines a shard
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"Received 12 of 48 \(25.0%\), 12 of them: wanted 5 fields. For example .*log:4: "):
        prepare(log, tmp_path / "out", spec=SPEC, shard_lines=16)


def test_the_commonest_reason():
    bad = BadLines()
    for i in range(30):
        bad.add(f"column 2 (n): wanted an integer. Received '{i}x'" if i % 3 else "wanted 5 fields. Received 4", f"log:{i}: what")
    assert bad.reasons == {"wanted 5 fields": (10, "log:0: what"), "column 2 (n): wanted an integer": (20, "log:1: what")}
    bad.check(3000, 0.01)
    with pytest.raises(DataError, match="Received 30 of 2,999 .*, 20 of them: column 2 .*For example log:1: what; --max-bad"):
        bad.check(2999, 0.01)


def test_options_of_the_command_line(tmp_path, capsys, monkeypatch):
    """`--missing` and `--labels` add to the spec, which the data then has."""
    monkeypatch.chdir(tmp_path)
    row = ["-1", r"\N", "NULL", *["7"] * 11, "NULL", *["a"] * 25]
    log_of(tmp_path / "log", ["\t".join(row).encode(), "\t".join(["1", *row[1:]]).encode()], 30)
    arguments = ["prepare", "log", "-o", "out", "--missing", r"\N", "--missing", "NULL"]
    assert main(arguments) == 1
    assert "--labels -1/1 takes such labels" in capsys.readouterr().err
    assert main([*arguments, "--labels", "-1/1"]) == 0
    from dlrm_tf.data.records import Records

    records = Records.open("out")
    assert (records.spec.labels, records.spec.missing) == ("-1/1", (r"\N", "NULL"))
    assert records.vocabulary().keys("C1") == [""]
    assert records.manifest["counts"]["missing"]["I1"] == 30
    assert records.numpy("train")[2].mean() == 0.5
    assert main([*arguments[:-4], "--max-bad-share", "2"]) == 2
    assert main(["prepare", "log", "-o", "out2", "--labels", "2/3"]) == 2


def test_a_spec_without_a_label_is_for_scoring(tmp_path):
    with pytest.raises(DataError, match="feature spec: wanted a label column, to train with the rows. Received none"):
        prepare(tmp_path / "log", tmp_path / "out", spec=FeatureSpec(SPEC.columns[1:]))
