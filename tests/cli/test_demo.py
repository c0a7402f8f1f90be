"""`dlrm-tf demo`: every step runs, on few rows, and the report holds real figures."""

import json
import re
import subprocess
import sys

import pytest

from dlrm_tf.cli.main import main


@pytest.mark.slow
def test_every_step(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "dlrm_tf", "demo", "-o", str(out), "--rows", "7000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    steps = {step["name"]: step["figures"] for step in report["steps"]}
    assert float(steps["parity with MindSpore"]["largest difference of 64 probabilities"]) <= 1e-6
    assert steps["prepare"]["train / test rows"] == "6,000 / 1,000"
    assert steps["MindSpore checkpoint -> Keras"]["bit for bit as it was"] == "yes"
    before, after = map(float, steps["evaluate, trained"]["logloss"].split(" -> "))
    assert after < before
    for name in ("SavedModel", "gRPC"):
        largest, _ = map(float, steps["serve and score"][f"{name} against Keras, largest / mean difference"].split(" / "))
        assert largest <= 1e-6
    assert set(report["latencies"]) == {"TFLite int8, in process, 1 row", "gRPC, 1 row a call", "gRPC, 64 rows a call"}
    assert len(re.findall("data:image/png;base64,", (out / "report.html").read_text())) == 4
    assert "report: " in done.stdout


@pytest.mark.parametrize("rows, message", [("10", "at least 7000"), ("7000", "a new folder or an earlier demo's")])
def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys, rows, message):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["demo", "-o", str(tmp_path), "--rows", rows]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"
