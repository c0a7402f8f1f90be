"""examples/node: a client in another language gets the same probabilities as ours."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from dlrm_tf.data.features import log_dense
from dlrm_tf.score import Client

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "node"
INSTALL = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=20000"]


@pytest.mark.slow
def test_the_node_client_scores_rows(linear_model, tmp_path, start):
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node, or no npm, on this machine")
    folder = tmp_path / "node"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(INSTALL, cwd=folder, capture_output=True, text=True, timeout=300)
    if installed.returncode:
        pytest.skip(f"npm gives no packages here: {installed.stderr[-300:]}")
    server = start(model_base_path=linear_model)
    rng = np.random.default_rng(1)
    dense, ids = rng.integers(-2, 3, (5, 13)).astype(np.float32), rng.integers(0, 2, (5, 26)).astype(np.int32)
    with Client(server.target, model_name="dlrm") as client:
        expected = client.predict({"dense": log_dense(dense), "categorical": ids})["probability"][:, 0]
    lines = "".join("\t".join(map(str, (*map(int, numbers), *row))) + "\n" for numbers, row in zip(dense, ids))

    def score(name):
        command = ["node", "score.js", server.target, name]
        return subprocess.run(command, cwd=folder, input=lines, capture_output=True, text=True, timeout=120)

    done = score("dlrm")
    assert done.returncode == 0, done.stderr
    # float32 all along; the two logarithms may differ in the last place
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], expected, rtol=1e-5)
    assert expected.min() > 1e-4 and expected.max() < 0.9999 and len(set(expected)) == 5
    done = score("none")
    assert done.returncode == 1 and "NOT_FOUND: Servable not found for request" in done.stderr
