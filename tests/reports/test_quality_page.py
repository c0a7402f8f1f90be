"""Means, intervals and tables of a quality study, by hand; the study's own file; a study of minutes, interrupted."""

import json
import math
import pathlib
import sys

import pytest

from dlrm_tf.reports.mean_interval import MeanInterval, t_quantile
from dlrm_tf.reports.quality_page import index_cells, mean_change, tables, write_quality_page

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def cell(seed, measure="float32", recipe="default", head="dot", min_count=1, **figures):
    usual = {"auc": 0.7, "logloss": 0.5, "normalized_entropy": 0.9, "calibration": 1.0, "best_auc": 0.8, "best_logloss": 0.45}
    usual.update(bytes=2_000_000, ids=1000, seconds=10.0)
    names = {"seed": seed, "recipe": recipe, "head": head, "min_count": min_count, "measure": measure}
    return {**names, **usual, **figures}


def test_interval_is_students():
    """Of 1, 2, 3, 4: mean 2.5, deviation 1.29099, t of 3 degrees of freedom 3.182: 2.5 +- 2.0540."""
    measured = MeanInterval.of([1, 2, 3, 4])
    assert measured.mean == 2.5 and measured.half == pytest.approx(3.182 * math.sqrt(5 / 3) / 2, rel=1e-9)
    assert measured.text(3) == "2.500 ± 2.054"
    assert math.isnan(MeanInterval.of([7]).half) and MeanInterval.of([7]).text(1, "+") == "+7.0"


@pytest.mark.parametrize("freedom, quantile", [(1, 12.706), (4, 2.776), (10, 2.228), (11, 2.201), (20, 2.086), (120, 1.980)])
def test_quantiles_of_t(freedom, quantile):
    assert t_quantile(freedom) == pytest.approx(quantile, abs=0.0025)


def test_changes_are_taken_seed_by_seed():
    """Seeds differ by 0.1, models by 0.01 and 0.02: the change's interval knows only the latter."""
    cells = [
        cell(1, auc=0.7),
        cell(2, auc=0.8),
        cell(1, "int8 all", auc=0.69),
        cell(2, "int8 all", auc=0.78),
        cell(3, "int8 all"),
    ]
    index = index_cells(cells)
    change = mean_change(index["default", "dot", 1, "int8 all"], index["default", "dot", 1, "float32"], "auc")
    assert change.mean == pytest.approx(-0.015)
    assert change.half == pytest.approx(12.706 * 0.005)


def test_tables_and_page(tmp_path):
    cells = [cell(seed, head=head, auc=0.7 + 0.02 * seed) for seed in (1, 2) for head in ("dot", "cat")]
    cells += [cell(1, "int4 5%", refused="too small") | {"seed": 2}]
    del cells[-1]["auc"]
    cells += [cell(seed, "int8 5%", auc=0.71 + 0.02 * seed, bytes=100_000, ids=10) for seed in (1, 2)]
    cells += [cell(seed, "day 5", auc=0.65, calibration=0.8) for seed in (1, 2)]
    cells += [cell(seed, min_count=10, auc=0.69 + 0.02 * seed, ids=70) for seed in (1, 2)]
    lines = tables(cells).splitlines()
    assert lines[0].startswith("Means over 2 seeds")
    first = next(line for line in lines if line.startswith("| default | dot"))
    assert first.split(" | ")[2] == "0.7300 ± 0.1271" and first.split(" | ")[3] == "0.0700 ± 0.1271"
    assert "| default | cat | 0.7300 ± 0.1271 | 0.0700 ± 0.1271 | +0.0000 ± 0.0000 |" in "\n".join(lines)
    assert "| default, dot | int8 5% | 0.10 | 10 | +0.01000 ± 0.00000 |" in "\n".join(lines)
    assert "| default, dot | day 5 | 0.6500 ± 0.0000 | 0.1500 ± 0.0000 | 0.0500 ± 0.0000 | 0.800 ± 0.000 |" in lines
    assert "| default, dot | 10 | 70 | -0.0100 ± 0.0000 | +0.0000 ± 0.0000 |" in lines
    assert "| default, dot | int4 5% |  | too small |" in tables(cells)  # no file was written
    page = pathlib.Path(write_quality_page(cells, tmp_path)).read_text()
    assert "data:image/png;base64," in page and "http" not in page
    assert (tmp_path / "quality.md").read_text().splitlines()[2:] == lines


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield __import__("quality")
    sys.modules.pop("quality", None)


def test_cells_survive_an_interruption(study, tmp_path):
    """A line that was cut is done again; other settings are refused."""
    settings = {"rows": 7000, "later_rows": 7000, "cardinalities": "small"}
    training = study.Training(1, "default", "dot", 1)
    begun = study.Study(str(tmp_path), settings)
    begun.add(training, "float32", {"auc": 0.7})
    with open(tmp_path / "cells.jsonl", "a") as file:
        file.write('{"seed": 1, "recipe": "defa')
    again = study.Study(str(tmp_path), settings)
    assert again.missing(training, ["float32", "day 1"]) == ["day 1"]
    again.add(training, "day 1", {"auc": 0.6})
    assert [json.loads(line)["measure"] for line in (tmp_path / "cells.jsonl").read_text().splitlines()] == ["float32", "day 1"]
    with pytest.raises(study.UsageError, match="choose another -o"):
        study.Study(str(tmp_path), {**settings, "rows": 8000})


@pytest.mark.parametrize(
    "argv", [["--heads", "dots"], ["--dtypes", "int2"], ["--rows", "10"], ["--seeds", "0"], ["--recipes", ""]]
)
def test_wrong_usage(study, tmp_path, argv):
    with pytest.raises(study.UsageError):
        study.main(["-o", str(tmp_path / "out"), *argv])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_is_continued(study, tmp_path, capsys):
    """One seed: every measure is there, figures are within reason; more measures are added without those that are done."""
    call = ["-o", str(tmp_path), "--rows", "7000", "--seeds", "1", "--recipes", "default", "--heads", "dot"]
    study.main([*call, "--days", "", "--min-counts", "1", "--dtypes", "int8", "--budgets", "0.01"])
    first = study.read_cells(str(tmp_path / "cells.jsonl"))
    assert [cell["measure"] for cell in first] == ["float32", "int8 all", "int8 0.01%"]
    study.main([*call, "--days", "2", "--min-counts", "1,3", "--dtypes", ""])
    cells = study.read_cells(str(tmp_path / "cells.jsonl"))
    assert cells[:3] == first
    measured = [(cell["min_count"], cell["measure"]) for cell in cells[3:]]
    assert measured == [(1, "day 2"), (3, "float32"), (3, "day 2")]
    whole, device, refused, later, frequent, _ = cells
    assert "refused" in refused and "auc" not in refused
    assert device["bytes"] < whole["bytes"] / 2 and device["auc"] == pytest.approx(whole["auc"], abs=0.01)
    assert frequent["ids"] < whole["ids"] / 3
    assert 0.75 < later["best_auc"] < 0.85 and 0.5 < later["auc"] < later["best_auc"]
    assert not (tmp_path / "work").exists()
    printed = capsys.readouterr().out
    assert "Keys of few rows left out" in printed and "| default, dot | int8 0.01% |  | too small |" in printed
