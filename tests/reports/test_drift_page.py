"""The page of a comparison: its numbers are those of the figures, and it stands alone."""

import pytest

from dlrm_tf.errors import UsageError
from dlrm_tf.fresh.figures import Bin, Drift, FeatureDrift, ScoreDrift
from dlrm_tf.reports.drift_page import _figure, drift_lines, write_drift_page

DENSE = FeatureDrift("n", "dense", 0.05, 0.001, (None, 0.25), moved=(Bin("0 or below", (0.5, 0.4)),))
KEYED = FeatureDrift("c", "categorical", 0.3, 0.002, (0.1, 0.2), 0.06, 0.04, (1234, 5), (Bin("key <x>", (0.75, 0.5)),))
SCORE = ScoreDrift((10, 20), 0.125, 0.01, (0.25, 0.5), (1.5, None), (Bin("below 0.3", (0.9, 0.2)), Bin("above 0.3", (0.1, 0.8))))
FOUND = Drift(("<a>", "b"), (1000, 2000), (0.25, None), (DENSE, KEYED), SCORE, (3, "record 7: wanted"))


def test_lines():
    lines = drift_lines(FOUND)
    assert lines[:3] == [
        "A <a>: 1,000 rows, 25.00% positive",
        "B b: 2,000 rows, ? positive",
        "  3 requests skipped: record 7: wanted",
    ]
    table = [line.split() for line in lines[4:6]]
    assert table[0] == ["c", "0.3000", "much", "0.0020", "10.00%", "20.00%", "6.00%", "4.00%", "1,234", "5"]
    assert table[1] == ["n", "0.0500", "0.0010", "?", "25.00%"]
    # Columns stand under their heads.
    assert lines[3].rindex("keys B") + len("keys B") == len(lines[4])
    assert [line for line in lines if line.startswith("  c: ")] == ["  c: key <x> 75.00% -> 50.00%"]
    assert not [line for line in lines if line.startswith("  n: ")]  # below 0.1
    assert lines[-2] == "score: PSI 0.1250 (by chance 0.0100) over the deciles of A, of 10 and 20 rows"
    assert lines[-1] == "  mean probability 0.250000 -> 0.500000, calibration 1.5000 -> ?"


def test_page(tmp_path):
    pytest.importorskip("matplotlib")
    index, new, missing, score = _figure(FOUND).axes
    assert [bar.get_height() for bar in index.patches] == [0.05, 0.3]
    assert [bar.get_height() for bar in new.patches] == [6]
    assert [bar.get_height() for bar in missing.patches] == [0, 10, 25, 20]
    assert [bar.get_height() for bar in score.patches] == pytest.approx([90, 10, 20, 80])
    write_drift_page(FOUND, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<h1>drift: &lt;a&gt; to b</h1>" in text
    assert "key &lt;x&gt; 75.00%" in text
    assert "http" not in text.replace("data:image/png", "")
    write_drift_page(Drift(("a", "b"), (1, 1), (None, None), (DENSE,)), tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="page must end in .html or .png"):
        write_drift_page(FOUND, tmp_path / "page.pdf")
