"""The C example: built against the library of the ai-edge-litert wheel, it scores as Scorer does."""

import importlib.metadata
import pathlib
import shutil
import subprocess

import ai_edge_litert
import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.lite import Scorer

SOURCE = pathlib.Path(__file__).parents[2] / "examples" / "c" / "score.c"
LIBRARY = pathlib.Path(ai_edge_litert.__file__).parent / "libLiteRt.so"
CONFIG = dlrm_tf.DLRMConfig.preset("tiny")

# Earlier wheels have no library, or one whose functions take other arguments.
OLDEST = (2, 1, 6)
VERSION = tuple(int(part) for part in importlib.metadata.version("ai-edge-litert").split(".")[:3])

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not LIBRARY.exists() or VERSION < OLDEST,
    reason="needs a C compiler, and the libLiteRt.so of ai-edge-litert 2.1.6 or newer",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("c")
    program = folder / "score"
    linker = ["-L", str(LIBRARY.parent), "-lLiteRt", f"-Wl,-rpath,{LIBRARY.parent}", "-lm"]
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-O2", "-o", str(program), str(SOURCE), *linker], check=True)
    dlrm_tf.DLRM(CONFIG, seed=1).save_weights(folder / "m.weights.h5")
    dlrm_tf.export_tflite(folder / "m.weights.h5", folder / "m.tflite", quiet=True)
    return program, folder / "m.tflite"


def run(built, text):
    return subprocess.run([str(built[0]), str(built[1])], input=text, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("rows", [1, 64, 150])
def test_scores_as_the_python_scorer(built, rows):
    generator = np.random.default_rng(rows)
    dense = generator.integers(-3, 2000, (rows, 13)).astype(np.float32)
    categorical = np.stack([generator.integers(-2, s + 2, rows) for s in CONFIG.categorical_feature_sizes], 1)
    missing = generator.random(dense.shape) < 0.2
    lines = [
        "\t".join(["" if m else f"{x:g}" for x, m in zip(d, gone)] + [str(i) for i in ids])
        for d, gone, ids in zip(dense, missing, categorical)
    ]
    done = run(built, "\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    prepared = np.log1p(np.where(missing | (dense < 0), 0, dense))
    np.testing.assert_allclose(
        np.array(done.stdout.split(), np.float32), Scorer(built[1]).score(prepared, categorical), atol=1e-6
    )


def test_a_model_without_dense_features(built, tmp_path):
    config = dlrm_tf.DLRMConfig((5, 7, 3), dense_dim=0, embedding_dim=4, top_mlp=(8, 1))
    dlrm_tf.DLRM(config, seed=1).save_weights(tmp_path / "m.weights.h5")
    dlrm_tf.export_tflite(tmp_path / "m.weights.h5", tmp_path / "m.tflite", quiet=True)
    ids = np.random.default_rng(0).integers(-1, 8, (70, 3))
    done = run((built[0], tmp_path / "m.tflite"), "".join("\t".join(map(str, row)) + "\n" for row in ids))
    wanted = Scorer(tmp_path / "m.tflite").score(np.empty((70, 0)), ids)
    np.testing.assert_allclose(np.array(done.stdout.split(), np.float32), wanted, atol=1e-6)


@pytest.mark.parametrize(
    "line, message",
    [
        ("1\t2", "line 1: wanted 39 fields. Received 2"),
        ("\t".join(["1"] * 40), "line 1: more than 39 fields"),
        ("\t".join(["x"] + ["1"] * 38), "line 1, field 1: not a number: 'x'"),
        ("\t".join(["1"] * 38 + [""]), "line 1, field 39: not a number: ''"),
        ("\t".join(["inf"] + ["1"] * 38), "line 1, field 1: not a number: 'inf'"),
        ("\t".join(["1", "1e39"] + ["1"] * 37), "line 1, field 2: not a number: '1e39'"),
    ],
)
def test_bad_rows_are_named(built, line, message):
    done = run(built, line + "\n")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.strip().endswith(message)
