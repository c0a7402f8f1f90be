"""The road of logs without numbers, Avazu's and one of a single category: every form of the model gives one probability a row."""

import json
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from test_bags_road import TOLERANCE
from waiting import PATIENCE

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.export.ascend.export import export_ascend
from dlrm_tf.export.budget import prune_weights
from dlrm_tf.export.tflite.export import TFLiteExporter
from dlrm_tf.lite.scorer import Scorer
from dlrm_tf.model.subset import float_probabilities
from dlrm_tf.probability import sigmoid
from dlrm_tf.score.client import Client
from dlrm_tf.serve import ModelServer
from dlrm_tf.weights.grow import grow_weights
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber

pytestmark = pytest.mark.slow  # training compiles its graph
# float32 layers, but the table's rows are int8 (seen: 5e-3 with 16 numbers a row).
LITE_TOLERANCE = 2e-2
ROWS = 3000
OPTIONS = ["--top-mlp", "16", "--embedding-dim", "4", "--dropout", "0", "--dense-learning-rate", "0.02", "--decay", "0"]
AVAZU = dlrm_tf.FeatureSpec.preset("avazu")
ONE = dlrm_tf.FeatureSpec((("shop", "categorical"), ("clicked", "label")), ",", header=True)


def generated(spec, rows, seed):
    """The fields of each row as text; the label follows from the first two categories."""
    rng, effect = np.random.default_rng(seed), np.random.default_rng(0).normal(0, 2, (2, 50))
    result = []
    for i in range(rows):
        keys = {name: int(rng.integers(50)) for name in spec.categorical_names}
        logit = sum(of[keys[name]] for of, name in zip(effect, spec.categorical_names))
        cells = {name: f"{1000 + f}{key}" if f % 3 else f"{key:08x}" for f, (name, key) in enumerate(keys.items())}
        label = str(int(rng.random() < sigmoid(logit)))
        cells.update({name: label if kind == "label" else f"{i}" for name, kind in spec.columns if kind != "categorical"})
        result.append([cells[name] for name, _ in spec.columns])
    return result


def write_log(path, spec, rows):
    path.write_text("".join(",".join(row) + "\n" for row in [[name for name, _ in spec.columns], *rows]))


def network(weights, vocabulary, row):
    """The probability of one row in float64, written out: embeddings side by side, then the products of all pairs."""
    vectors = []
    for number, (name, key) in enumerate(zip(vocabulary.names, row)):
        keys = vocabulary.keys(name)
        place = keys.index(key) if key in keys else len(keys)
        vectors.append(weights.rows(number, place, place + 1)[0].astype(np.float64))
    values = np.concatenate([*vectors, [a @ b for j, b in enumerate(vectors) for a in vectors[:j]]])
    last = len(weights.config.top_mlp) - 1
    for i in range(last + 1):
        kernel, bias = weights.dense("top_mlp", i)
        values = values @ kernel.astype(np.float64) + bias
        values = values if i == last else np.maximum(values, 0)
    return sigmoid(values[0])


@pytest.fixture(scope="module", params=[AVAZU, ONE], ids=["avazu", "one_category"])
def road(request, tmp_path_factory):
    """`(folder, spec, what --spec takes)` of a log that was prepared and trained on by the command line."""
    folder, spec = tmp_path_factory.mktemp("no_dense"), request.param
    (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
    columns = "avazu" if spec is AVAZU else str(folder / "spec.json")
    write_log(folder / "log.csv", spec, generated(spec, ROWS, 1))
    assert main(["prepare", str(folder / "log.csv"), "--spec", columns, "-o", str(folder / "data")]) == 0
    assert main(["train", "--data", str(folder / "data"), "-o", str(folder / "run"), *OPTIONS, "--epochs", "6"]) == 0
    return folder, spec, columns


def test_every_form_gives_one_probability(road, monkeypatch):
    folder, spec, columns = road
    weights, keys, data = folder / "run" / "model.weights.h5", str(folder / "data" / "vocabulary.npz"), str(folder / "data")
    assert main(["evaluate", "--data", data, "--weights", str(weights)]) == 0
    config, vocabulary = dlrm_tf.load(weights).config, dlrm_tf.Vocabulary.load(keys)
    assert (config.dense_dim, config.bottom_mlp, list(config.inputs)) == (0, (), ["categorical"])
    assert dlrm_tf.evaluate(data, weights, quiet=True)["auc"] > 0.6

    rows = generated(spec, 40, 2)
    at = [[name for name, _ in spec.columns].index(name) for name in spec.categorical_names]
    rows[0][at[0]] = "never seen"
    rows[1][at[-1]] = ""
    text = np.array([[row[i] for i in at] for row in rows], object)
    with WeightsReader(weights) as reader:
        wanted = np.array([network(reader, vocabulary, row) for row in text])
    assert np.ptp(wanted) > 0.1

    served, lite = folder / "served", folder / "m.tflite"
    given = ["--weights", str(weights), "--vocabulary", keys]
    assert main(["export", "savedmodel", *given, "-o", str(served)]) == 0
    assert main(["export", "tflite", *given, "--data", data, "--mlp", "float32", "-o", str(lite)]) == 0
    write_log(folder / "rows.csv", spec, rows)
    for target, tolerance in ((weights, TOLERANCE), (served / "dlrm", TOLERANCE), (lite, LITE_TOLERANCE)):
        with dlrm_tf.Predictor(target, vocabulary, spec=columns) as predictor:
            frame = {name: text[:, f] for f, name in enumerate(spec.categorical_names)}
            np.testing.assert_allclose(predictor.predict(frame), wanted, atol=tolerance)
        scores = str(folder / "scores.csv")
        assert (
            main(["score", str(folder / "rows.csv"), "--target", str(target), "--spec", columns, *given[2:], "-o", scores]) == 0
        )
        np.testing.assert_allclose(np.loadtxt(scores, skiprows=1), wanted, atol=tolerance)
    scorer = Scorer(lite)
    np.testing.assert_allclose(scorer.score_raw(np.empty((len(text), 0)), text), wanted, atol=LITE_TOLERANCE)
    assert scorer.metadata["inputs"] == {"categorical": "int32 [batch_size, F]"}

    # A server has no input of 0 columns either, over gRPC and REST, in any signature.
    dense, ids = Encoder(spec, vocabulary).arrays(np.empty((len(text), 0)), text)
    with ModelServer(model_name="dlrm", model_base_path=str(served / "dlrm"), rest_api_port=0) as server:
        for address in (server.target, f"http://127.0.0.1:{server.rest_api_port}"):
            with Client(address) as client:
                np.testing.assert_allclose(client.score(dense, ids), wanted, atol=TOLERANCE)
                raw = client.predict({"categorical": text.astype("S")}, signature_name="raw", outputs=("probability",))
                np.testing.assert_allclose(raw["probability"][:, 0], wanted, atol=TOLERANCE)
                assert list(client.metadata()["raw"]["inputs"]) == ["categorical"]
        np.testing.assert_allclose(rows_over_rest(server, ids), wanted, atol=TOLERANCE)
        np.testing.assert_allclose(examples_over_rest(server, ids), wanted, atol=TOLERANCE)

    monkeypatch.setenv("PATH", str(folder))  # no atc
    command = export_ascend(weights, folder / "ascend", data=data, vocabulary=keys).command
    assert f"categorical:64,{ids.shape[1]} " in command.replace("'", " ") and "dense" not in command
    done = subprocess.run([sys.executable, folder / "ascend" / "check.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def rest(server, verb, document):
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.rest_api_port}/v1/models/dlrm:{verb}", json.dumps(document).encode(), timeout=PATIENCE
    ) as answer:
        return json.load(answer)


def rows_over_rest(server, ids):
    """The row format: with a single input, a row goes without its name."""
    answer = rest(server, "predict", {"instances": ids.tolist()})
    return [row["probability"][0] for row in answer["predictions"]]


def examples_over_rest(server, ids):
    """tf.Examples without `dense`."""
    return rest(server, "regress", {"signature_name": "regress", "examples": [{"categorical": row} for row in ids.tolist()]})[
        "results"
    ]


def test_smaller_files_a_resume_and_new_keys(road, tmp_path):
    folder, spec, columns = road
    weights, data = folder / "run" / "model.weights.h5", str(folder / "data")
    records = dlrm_tf.Records.open(data)
    _, ids, _ = records.numpy("test")
    dense = np.empty((len(ids), 0), np.float32)
    wanted = float_probabilities(str(weights), dense, ids)
    whole = dlrm_tf.export_tflite(weights, tmp_path / "whole.tflite", data=records, quiet=True)
    assert Scorer(whole.path).metadata["quantization"]["calibration_rows"] == records.rows("train")
    assert whole.rows == len(ids) and whole.max_error < LITE_TOLERANCE
    np.testing.assert_allclose(Scorer(whole.path).score(dense, ids), wanted, atol=LITE_TOLERANCE)
    with pytest.raises(DataError, match=r"dense must be \[batch_size, 0\]. Received \[1, 13\]"):
        Scorer(whole.path).score(np.zeros((1, 13)), ids[:1])
    # A budget of bytes keeps the ids that matter: of the first category, whose keys have the effects.
    source = TFLiteExporter(weights, data=records, quiet=True).source
    kept = source.ranking.keep(source.ranking.total // 2)
    pruned = str(tmp_path / "pruned.weights.h5")
    prune_weights(str(weights), pruned, kept=kept, counts=source.counts, quiet=True)
    assert float_probabilities(pruned, dense, renumber(ids, kept, source.config)).shape == wanted.shape
    assert spec is ONE or len(kept[0]) > 2 * np.mean([len(f) for f in kept[2:]])

    assert main(["train", "--data", data, "-o", str(folder / "run"), *OPTIONS, "--epochs", "7", "--resume"]) == 0
    assert [epoch["epoch"] for epoch in json.loads((folder / "run" / "history.json").read_text())] == list(range(1, 8))
    assert main(["train", "--data", data, "-o", str(tmp_path / "run"), "--bottom-mlp", "8"]) == 2

    write_log(
        tmp_path / "new.csv",
        spec,
        [
            [f"new{cell}" if kind == "categorical" else cell for cell, (_, kind) in zip(row, spec.columns)]
            for row in generated(spec, 20, 3)
        ],
    )
    later = dlrm_tf.prepare(tmp_path / "new.csv", tmp_path / "new", spec=spec, vocabulary=records.vocabulary(), grow=True)
    grow_weights(weights, tmp_path / "grown.weights.h5", later.vocabulary(), seed=1)
    np.testing.assert_array_equal(
        float_probabilities(str(tmp_path / "grown.weights.h5"), dense, ids), float_probabilities(str(weights), dense, ids)
    )
    with pytest.raises(CheckpointError, match="m.ckpt: wanted a model with dense features"):
        dlrm_tf.convert(weights, tmp_path / "m.ckpt", quiet=True)
