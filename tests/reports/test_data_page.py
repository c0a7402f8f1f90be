"""The page of a data folder: its numbers by hand, and that it stands alone."""

import numpy as np
import pytest

from dlrm_tf import Bag, FeatureSpec, prepare
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.reports.data_page import _count, _figure, write_page


@pytest.fixture(scope="module")
def folder(golden_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "<data>"
    prepare(golden_dir / "criteo" / "train.txt", out, shard_lines=100)
    return out


@pytest.fixture(scope="module")
def records(folder):
    from dlrm_tf.data.records import Records

    return Records.open(folder)


def test_counts(records):
    sums = _count(records)
    categorical = np.concatenate([records.numpy(split)[1] for split in ("train", "test")])
    label = np.concatenate([records.numpy(split)[2] for split in ("train", "test")])
    for i, counts in enumerate(sums.counts):
        assert counts.tolist() == np.bincount(categorical[:, i], minlength=records.sizes[i] + 1).tolist()
    assert (sums.rows.sum(), sums.positives.sum()) == (698, label.sum())
    assert sums.positives[0] == label[: sums.rows[0]].sum()


def test_counts_of_bags(tmp_path):
    """Every place of a bag counts, unused ones do not."""
    spec = FeatureSpec((("y", "label"), ("tags", "categorical"), ("c", "categorical")), bags={"tags": Bag("|", 3)})
    (tmp_path / "log.tsv").write_text("1\ta|b|a\tp\n0\t\tq\n1\tb|c\tq\n")
    assert [count.tolist() for count in _count(prepare(tmp_path / "log.tsv", tmp_path / "out", spec=spec)).counts] == [
        [2, 2, 1, 1, 0],
        [1, 2, 0],
    ]


def test_figure_shows_the_numbers(records):
    pytest.importorskip("matplotlib")
    cardinality, frequency, missing, label = _figure(records, _count(records)).axes
    assert [bar.get_height() for bar in cardinality.patches] == list(records.sizes)
    largest = int(np.argmax(records.sizes))
    first = frequency.lines[0]
    ids = np.concatenate([records.numpy(split)[1][:, largest] for split in ("train", "test")])
    assert (first.get_label(), first.get_ydata()[0]) == (f"C{largest + 1}", np.bincount(ids).max())
    assert missing.patches[0].get_height() == pytest.approx(100 * records.manifest["counts"]["missing"]["I1"] / 698)
    assert len(label.lines[0].get_ydata()) == 100


@pytest.mark.slow
def test_html_and_png(folder, tmp_path):
    pytest.importorskip("matplotlib")
    write_page(folder, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "698 rows from 700 lines" in text
    assert "<h1>&lt;data&gt;</h1>" in text
    assert "http" not in text.replace("data:image/png", "")
    write_page(folder, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(golden_dir, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from dlrm_tf.cli.main import main

    arguments = ["prepare", str(golden_dir / "criteo" / "train.txt"), "-o", str(tmp_path / "out"), "--report"]
    assert main([*arguments, str(tmp_path / "page.pdf")]) == 2
    assert not (tmp_path / "out").exists()
    assert main([*arguments, str(tmp_path / "page.png")]) == 0
    assert (tmp_path / "page.png").exists()


def test_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="page must end in .html or .png"):
        write_page(folder, tmp_path / "page.pdf")
    with pytest.raises(DataError, match="not a prepared data folder"):
        write_page(tmp_path, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())
