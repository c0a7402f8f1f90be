"""synth: the format, the known AUC and logloss, the frequencies, determinism."""

import hashlib
import json

import numpy as np
import pytest

from dlrm_tf import synth
from dlrm_tf.config import CRITEO_KAGGLE_SIZES
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.row_text import TAB, key_fields, lines, number_fields
from dlrm_tf.data.spec import CRITEO
from dlrm_tf.data.world_one import WorldOne
from dlrm_tf.errors import UsageError
from dlrm_tf.probability import histogram_auc


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`(report, bytes)` of 70,000 rows: more than one block."""
    path = tmp_path_factory.mktemp("synth") / "rows.tsv"
    return synth(path, 70_000, seed=3), path.read_bytes(), json.loads((path.parent / "rows.tsv.json").read_text())


def test_is_criteos_format(made):
    report, text, _ = made
    block = parse_block(text, CRITEO)
    assert (block.lines, len(block.bad), sum(map(len, block.odd))) == (70_000, 0, 0)
    assert report.positive_rate == pytest.approx(block.label.mean())
    assert report.positive_rate == pytest.approx(0.256, abs=0.01)
    assert 0.05 < block.dense_missing.mean() < 0.4
    assert 0.05 < block.empty.mean() < 0.4
    negative = sum(line.split(b"\t")[2].startswith(b"-") for line in text.splitlines())
    assert negative / 70_000 == pytest.approx(0.1 * (1 - block.dense_missing[:, 1].mean()), abs=0.01)


def test_categories_are_zipf_like_and_bounded(made):
    report, text, _ = made
    block = parse_block(text, CRITEO)
    for i, cardinality in enumerate(report.cardinalities):
        keys, counts = np.unique(block.keys[i][~block.empty[i]], return_counts=True)
        assert len(keys) <= cardinality
        if cardinality == 20_000:
            counts = np.sort(counts)[::-1]
            assert counts[0] > 5 * counts[20] > 25 * counts[2000]
            assert np.count_nonzero(counts == 1) > 2000


def test_same_seed_same_file(made, tmp_path):
    _, text, _ = made
    synth(tmp_path / "a.tsv", 70_000, seed=3)
    assert (tmp_path / "a.tsv").read_bytes() == text
    synth(tmp_path / "b.tsv", 100, seed=4)
    assert (tmp_path / "b.tsv").read_bytes() != text[: (tmp_path / "b.tsv").stat().st_size]


def test_report_beside(made):
    report, _, beside = made
    assert beside["best_auc"] == report.best_auc
    assert beside["cardinalities"] == list(report.cardinalities)
    assert 0.7 < report.best_auc < 0.9
    assert report.best_auc_test == pytest.approx(report.best_auc, abs=0.02)


@pytest.mark.parametrize(
    "seed, cardinalities, rows, sha256",
    [
        (3, "small", 70_000, "2f35da01c7047616cb609db020b2d9a93e8fc05669b36491156cc9aa8f1a5e82"),
        (1, "criteo", 1000, "a34a1b70ca986fbf92588d475d1ccdcd6ad4a51ba0d43fafcf58f211d254156d"),
        (7, [9] * 26, 300, "c03f826e868a9fcff39e31113f33a2563bd4aac6e253d6b45e7bc19b537d2200"),
    ],
)
def test_files_of_earlier_versions_come_again(tmp_path, seed, cardinalities, rows, sha256):
    synth(tmp_path / "rows.tsv", rows, seed=seed, cardinalities=cardinalities)
    assert hashlib.sha256((tmp_path / "rows.tsv").read_bytes()).hexdigest() == sha256


def test_best_auc_is_that_of_the_probabilities_labels_are_drawn_from():
    """Against all pairs, on the very rows; and labels are as frequent as the probabilities say."""
    probability, label, _, _ = WorldOne(5, (50,) * 26).draw(3000)
    positive, negative = probability[label], probability[~label]
    by_pairs = np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative))
    counts = np.zeros((2, 1 << 20), np.int64)
    np.add.at(counts, (label.astype(int), (probability * (1 << 20)).astype(int)), 1)
    assert histogram_auc(counts) == pytest.approx(by_pairs, abs=1e-5)
    assert label.sum() == pytest.approx(probability.sum(), abs=4 * float(np.sqrt((probability * (1 - probability)).sum())))


def test_text_of_a_row():
    numbers = np.array([[0, -3, 7, 10, 1234567, 99, 5, 0, 0, 0, 0, 0, 42]], np.int32)
    absent = np.array([[False] * 6 + [True] + [False] * 6])
    keys = np.arange(26, dtype=np.uint32)[None] * np.uint32(0x1010101)
    blank = np.array([[True] + [False] * 25])
    text = lines(np.array([True]), number_fields(numbers, absent), key_fields(keys, ~blank, TAB))
    expected = ["1", "0", "-3", "7", "10", "1234567", "99", "", "0", "0", "0", "0", "0", "42", ""]
    expected += [f"{key:08x}" for key in keys[0, 1:]]
    assert text.decode() == "\t".join(expected) + "\n"


def test_cardinalities(tmp_path):
    report = synth(tmp_path / "rows.tsv", 2000, seed=1, cardinalities=[2] * 26)
    block = parse_block((tmp_path / "rows.tsv").read_bytes(), CRITEO)
    assert report.cardinalities == (2,) * 26
    assert all(len(np.unique(keys[~empty])) == 2 for keys, empty in zip(block.keys, block.empty))
    assert sum(CRITEO_KAGGLE_SIZES) == 33_762_577


@pytest.mark.parametrize(
    "arguments",
    [
        {"rows": 0},
        {"seed": -1},
        {"cardinalities": "large"},
        {"cardinalities": [5] * 25},
        {"cardinalities": [0] * 26},
        {"world": 3},
        {"day": 1},
        {"hot_sizes": "some"},
        {"label_delay": 0.1},
        {"world": 2, "day": -1},
        {"world": 2, "day": 1 << 32},
        {"world": 2, "label_delay": float("nan")},
        {"world": 2, "label_delay": -0.5},
        {"world": 2, "hot_sizes": [2] * 25},
        {"world": 2, "hot_sizes": [0] * 26},
    ],
)
def test_arguments_out_of_range(tmp_path, arguments):
    with pytest.raises(UsageError):
        synth(tmp_path / "rows.tsv", **{"rows": 10, "seed": 1, **arguments})
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, capsys):
    from dlrm_tf.cli.main import main

    path = tmp_path / "rows.tsv"
    assert main(["synth", "-o", str(path), "--rows", "500", "--cardinalities", ",".join(["9"] * 26)]) == 0
    assert "500 rows" in capsys.readouterr().out
    assert main(["synth", "-o", str(path), "--cardinalities", "many"]) == 2
    assert path.read_bytes().count(b"\n") == 500
