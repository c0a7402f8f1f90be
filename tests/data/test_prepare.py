"""prepare equals upstream: the golden run, and upstream's rules in pure Python on any input."""

import gzip
import json
import os
import pathlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf import prepare
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, UsageError

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from pure_python import preprocess  # noqa: E402


def tree(folder) -> dict[str, bytes]:
    """All files of a folder by relative path."""
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_equals_reference(records: Records, reference: dict) -> None:
    """Every row, every id, every key and every count."""
    for split in ("train", "test"):
        dense, categorical, label = records.numpy(split)
        rows = reference[split]
        assert label[:, 0].tolist() == [row[0] for row in rows]
        assert dense.tolist() == [np.array(row[1], np.float32).tolist() for row in rows]
        assert categorical.tolist() == [row[2] for row in rows]
    vocabulary = records.vocabulary()
    assert [vocabulary.keys(name) for name in vocabulary.names] == [list(keys) for keys in reference["keys"]]
    assert records.sizes == tuple(len(keys) for keys in reference["keys"])
    counts = records.manifest["counts"]
    assert (counts["lines"], counts["bad_lines"]) == (reference["lines"], reference["bad"])


@pytest.mark.parametrize("shard_lines", [1 << 20, 100, 7])
def test_golden(golden_dir, tmp_path, shard_lines):
    """What upstream's own preprocessing made of the file: ids, values, labels, split, key order."""
    records = prepare(golden_dir / "criteo" / "train.txt", tmp_path / "out", shard_lines=shard_lines)
    with np.load(golden_dir / "criteo" / "expected.npz") as expected:
        for split in ("train", "test"):
            dense, categorical, label = records.numpy(split)
            np.testing.assert_array_equal(categorical, expected[f"{split}_ids"])
            np.testing.assert_array_equal(dense, expected[f"{split}_vals"])
            np.testing.assert_array_equal(label, expected[f"{split}_label"])
        vocabulary = records.vocabulary()
        assert list(records.sizes) == expected["sizes"].tolist()
        assert sum((vocabulary.keys(name) for name in vocabulary.names), []) == expected["keys_in_id_order"].tolist()
    counts = records.manifest["counts"]
    assert (counts["lines"], counts["bad_lines"], counts["rows"]) == (700, 2, {"train": 598, "test": 100})
    assert counts["bad_examples"][0].endswith("train.txt:18: wanted 40 fields. Received 3")


number = st.one_of(st.just(""), st.integers(-3, 20).map(str), st.integers(0, 10**9).map(str))
# Few keys, so that they repeat within a column and stand in several columns.
category = st.one_of(st.just(""), st.integers(0, 5).map("{:08x}".format), st.sampled_from(["ABCDEF01", "x", "é"]))
good = st.tuples(st.sampled_from("01"), st.lists(number, min_size=13, max_size=13), st.lists(category, min_size=26, max_size=26))
good = good.map(lambda row: "\t".join([row[0], *row[1], *row[2]]))
any_line = st.one_of(good, good, good, st.sampled_from(["", "1\t2\tbroken", "\t" * 40]))


@settings(max_examples=40, deadline=None)
@given(st.lists(any_line, min_size=1, max_size=25), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 9))
def test_equals_upstreams_rules(tmp_path_factory, lines, ending, ended, shard_lines):
    folder = tmp_path_factory.mktemp("property")
    tsv = folder / "log.tsv"
    tsv.write_bytes((ending.join([*lines, "0" + "\t" * 39]) + ending * ended).encode())  # at least one good line
    records = prepare(tsv, folder / "out", shard_lines=shard_lines, threads=2, max_bad_share=1)
    assert_equals_reference(records, preprocess(tsv))


@pytest.fixture
def golden_tsv(golden_dir):
    return golden_dir / "criteo" / "train.txt"


def test_shards_pieces_threads_and_files_do_not_matter(golden_tsv, tmp_path, monkeypatch):
    """One file or three, plain or gzip, read in small pieces, on one thread or four: the same bytes."""
    expected = tree(prepare(golden_tsv, tmp_path / "one", shard_lines=64).folder)
    lines = golden_tsv.read_bytes().splitlines(keepends=True)
    parts = [tmp_path / name for name in ("a.txt", "b.gz", "c.txt")]
    parts[0].write_bytes(b"".join(lines[:100]).rstrip(b"\n"))  # no newline at its end: still a line of its own
    parts[1].write_bytes(gzip.compress(b"".join(lines[100:400])))
    parts[2].write_bytes(b"".join(lines[400:]))
    monkeypatch.setattr("dlrm_tf.data.readers.text.PIECE_BYTES", 3000)
    got = tree(prepare(parts, tmp_path / "three", shard_lines=64, threads=4).folder)
    assert got.keys() == expected.keys()
    for name in expected:
        if name != "manifest.json":  # it names the files of bad lines
            assert got[name] == expected[name], name
    assert Records.open(tmp_path / "three").manifest["counts"]["bad_examples"] == [
        f"{parts[0]}:18: wanted 40 fields. Received 3",
        f"{parts[2]}:6: wanted 40 fields. Received 3",
    ]


def write_log(path, rows):
    """Rows `(label, number, category, category)` as comma-separated lines with a header."""
    path.write_text("y,n,c,d\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))


SMALL = FeatureSpec((("y", "label"), ("n", "int"), ("c", "categorical"), ("d", "categorical")), separator=",", header=True)


def test_own_log_with_other_columns(tmp_path):
    log = tmp_path / "log.csv"
    write_log(log, [(0, 1, "red", "u1"), (1, "", "", "u2"), (1, -4, "red", "u1"), (0, 7, "blue", "")])
    again = tmp_path / "again.csv"
    again.write_bytes(log.read_bytes())
    records = prepare([log, again], tmp_path / "out", spec=SMALL, test_fraction=0.25)
    dense, categorical, label = records.numpy("train")
    assert dense.tolist() == [[1], [0], [0], [7], [1], [0]]
    assert categorical.tolist() == [[0, 0], [1, 1], [0, 0], [2, 2], [0, 0], [1, 1]]
    assert label.tolist() == [[0], [1], [1], [0], [0], [1]]
    assert records.rows("test") == 2
    assert records.vocabulary().keys("c") == ["red", "", "blue"]
    assert records.manifest["counts"]["missing"] == {"n": 2, "c": 2, "d": 2}
    assert records.manifest["counts"]["positives"] == {"train": 3, "test": 1}


def test_min_count(tmp_path):
    log = tmp_path / "log.csv"
    write_log(log, [(0, 1, key, other) for key, other in zip("abcacab", ["", "x", "", "y", "z", "", ""])])
    records = prepare(log, tmp_path / "out", spec=SMALL, min_count=2, test_fraction=1 / 7, shard_lines=3)
    assert records.vocabulary().keys("c") == ["a", "b", "c"]
    assert records.vocabulary().keys("d") == [""]
    categorical = np.concatenate([records.numpy(split)[1] for split in ("train", "test")])
    assert categorical.tolist() == [[0, 0], [1, 1], [2, 0], [0, 1], [2, 1], [0, 0], [1, 0]]
    assert records.manifest["counts"]["out_of_vocabulary"] == {"c": 0, "d": 3}
    records = prepare(log, tmp_path / "three", spec=SMALL, min_count=3, test_fraction=0)
    assert records.vocabulary().keys("c") == ["a"]
    assert records.numpy("train")[1][:, 0].tolist() == [0, 1, 1, 0, 1, 0, 1]


def test_fixed_vocabulary(tmp_path):
    vocabulary = Vocabulary.from_keys({"c": ["b", ""], "d": ["x"]})
    log = tmp_path / "log.csv"
    write_log(log, [(0, 1, "a", "x"), (1, 1, "b", ""), (1, 1, "", "x"), (0, 1, "c", "y")])
    records = prepare(log, tmp_path / "out", spec=SMALL, vocabulary=vocabulary, test_fraction=0)
    assert records.numpy("train")[1].tolist() == [[2, 0], [0, 1], [1, 0], [2, 1]]
    assert records.manifest["counts"]["out_of_vocabulary"] == {"c": 2, "d": 2}
    assert records.manifest["vocabulary"]["fingerprint"] == vocabulary.fingerprint
    assert records.vocabulary().fingerprint == vocabulary.fingerprint
    with pytest.raises(DataError, match=r"wanted a vocabulary of the features C1, .* has c, d;"):
        prepare(log, tmp_path / "criteo", vocabulary=vocabulary)


@pytest.mark.parametrize("shard_lines", [1, 100])
def test_grow_appends_and_never_renumbers(tmp_path, shard_lines):
    vocabulary = Vocabulary.from_keys({"c": ["b", ""], "d": ["0000000a", "x"]})
    log = tmp_path / "log.csv"
    write_log(log, [(0, 1, "a", "x"), (1, 1, "b", ""), (1, 1, "", "0000000b"), (0, 1, "a", "0000000a"), (0, 1, "z", "x")])
    records = prepare(
        log, tmp_path / "out", spec=SMALL, vocabulary=vocabulary, grow=True, test_fraction=0, shard_lines=shard_lines
    )
    assert records.vocabulary().keys("c") == ["b", "", "a", "z"]
    assert records.vocabulary().keys("d") == ["0000000a", "x", "", "0000000b"]
    assert records.numpy("train")[1].tolist() == [[2, 1], [0, 2], [1, 3], [2, 0], [3, 1]]
    # New keys need their count, old ones stay even if they are not seen at all.
    records = prepare(log, tmp_path / "two", spec=SMALL, vocabulary=vocabulary, grow=True, min_count=2, test_fraction=0)
    assert records.vocabulary().keys("c") == ["b", "", "a"]
    assert records.numpy("train")[1].tolist() == [[2, 1], [0, 2], [1, 2], [2, 0], [3, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y,n,c,d\n1,2,a,b\n1,2.5,a,b\n", r"log.csv:3: column 2 \(n\): wanted an integer. Received '2.5'"),
        ("y,n,c,d\n1,2,a\n", r"log.csv:2: wanted 4 fields. Received 3"),
        ("y,n,c,d\n1,2,a,b\n\n", r"log.csv:3: wanted 4 fields. Received 1"),
    ],
)
def test_stop_at_a_bad_line(tmp_path, text, message):
    log = tmp_path / "log.csv"
    log.write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(log, tmp_path / "out", spec=SMALL, on_bad_line="stop")
    assert not (tmp_path / "out").exists()


def test_skipped_bad_cells_leave_no_trace(tmp_path):
    log = tmp_path / "log.csv"
    write_log(log, [(0, 1, "a", "x"), (1, "1x", "only here", "x"), ("", 1, "nor here", "x"), (1, 2, "b", "x")])
    records = prepare(log, tmp_path / "out", spec=SMALL, test_fraction=0.25)
    assert records.vocabulary().keys("c") == ["a", "b"]
    assert (records.rows("train"), records.rows("test")) == (1, 1)
    assert [example.split(": ", 1)[1] for example in records.manifest["counts"]["bad_examples"]] == [
        "column 2 (n): wanted an integer. Received '1x'",
        "column 1 (y): wanted 0 or 1. Received ''",
    ]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the input is empty"), (bytes(3000), "wanted 40 fields. Received 1; .*dlrm-tf spec")]
)
def test_input_without_a_good_line(tmp_path, content, message):
    tsv = tmp_path / "log.tsv"
    tsv.write_bytes(content)
    with pytest.raises(DataError, match=f"no good line among [01]: .*{message}"):
        prepare(tsv, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_gzip(golden_tsv, tmp_path):
    packed = tmp_path / "log.gz"
    packed.write_bytes(gzip.compress(golden_tsv.read_bytes())[:-30])
    with pytest.raises(DataError, match="log.gz: damaged gzip file"):
        prepare(packed, tmp_path / "out")


def test_file_without_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("dlrm_tf.data.readers.text.PIECE_BYTES", 1000)
    monkeypatch.setattr("dlrm_tf.data.readers.text._LONGEST_LINE", 1 << 20)
    tsv = tmp_path / "log.tsv"
    tsv.write_bytes(bytes(2 << 20))
    with pytest.raises(DataError, match="no line end in 1 MB"):
        prepare(tsv, tmp_path / "out")


def test_missing_input(tmp_path):
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "none.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_in_use(golden_tsv, tmp_path):
    prepare(golden_tsv, tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(DataError, match="already holds files"):
        prepare(golden_tsv, tmp_path / "out")
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_count": 0},
        {"shard_lines": 0},
        {"test_fraction": 1.0},
        {"test_fraction": -0.1},
        {"on_bad_line": "fix"},
        {"grow": True},
        {"threads": 0},
        {"min_count": 2, "vocabulary": Vocabulary.from_keys({"c": ["a"]})},
    ],
)
def test_arguments_out_of_range(golden_tsv, tmp_path, arguments):
    with pytest.raises(UsageError):
        prepare(golden_tsv, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inputs", [[], 5, None])
def test_inputs_that_are_none(inputs, tmp_path):
    with pytest.raises(UsageError, match=r"^inputs must be .*\. Received "):
        prepare(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_name(golden_tsv, tmp_path, monkeypatch):
    """`-o "$UNSET"` must not mean the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="out_dir must be a folder to make. Received ''"):
        prepare(golden_tsv, "")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("lines", "fraction", "expected"),
    [(45_840_617, 1 / 7, 45_840_617 // 7), (700, 1 / 7, 100), (699, 1 / 7, 99), (10, 0.3, 3), (10, 0, 0), (3, 1 / 7, 0)],
)
def test_lines_of_the_test_split(lines, fraction, expected):
    from dlrm_tf.data.record_files import lines_of_test

    assert lines_of_test(lines, fraction) == expected


def test_command_line(golden_tsv, tmp_path, capsys, monkeypatch):
    from dlrm_tf.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(golden_tsv), "-o", "out"]) == 0
    out = capsys.readouterr().out
    assert "698 rows from 700 lines, 2 bad lines skipped" in out
    (tmp_path / "spec.json").write_text(json.dumps(SMALL.to_dict()))
    write_log(tmp_path / "log.csv", [(0, 1, "a", "x"), (1, 2, "b", "x")])
    assert main(["prepare", "log.csv", "-o", "small", "--spec", "spec.json", "--test-fraction", "1/2"]) == 0
    arguments = ["prepare", "log.csv", "-o", "two", "--spec", "spec.json", "--vocabulary", "small/vocabulary.npz"]
    assert main(arguments) == 0
    assert Records.open("two").manifest["vocabulary"] == Records.open("small").manifest["vocabulary"]
    capsys.readouterr()
    assert main(["prepare", "log.csv", "-o", "out"]) == 1
    assert main(["prepare", "log.csv", "-o", "three", "--test-fraction", "x"]) == 2
    assert main(["prepare", "none.csv", "-o", "three"]) == 1
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("dlrm-tf:")] == [
        "dlrm-tf: out: already holds files; choose another folder, or empty it first",
        "dlrm-tf: --test-fraction must be from 0 to below 1, such as 1/7. Received 'x'",
        "dlrm-tf: none.csv: No such file or directory",
    ]
    assert not os.path.exists("three")
