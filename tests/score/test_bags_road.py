"""The whole road of several keys a row: raw log, prepare, fit, evaluate, score; against Python's own reading and NumPy."""

import json

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.train.metrics import ClickMetrics

SPEC = dlrm_tf.FeatureSpec(
    (("clicked", "label"), ("x", "float"), ("tags", "categorical"), ("shop", "categorical"), ("path", "categorical")),
    bags={
        "tags": dlrm_tf.Bag("|", 4, pooling="mean", weight_separator=":"),
        "path": dlrm_tf.Bag("/", 3),
    },
)
pytestmark = pytest.mark.slow  # training compiles its graph
# float32 beside float64, a few layers (seen: 1.4e-7).
TOLERANCE = 1e-6
ROWS = 3000


def generated(rows, seed):
    """Rows as Python values: (label, x, [(tag, weight)], shop, [part]); the label follows from tags at any place."""
    rng = np.random.default_rng(seed)
    effect = np.random.default_rng(0).normal(0, 3, 30)
    result = []
    for _ in range(rows):
        tags = rng.choice(30, rng.integers(0, 6), replace=False)
        weights = rng.integers(0, 5, len(tags)) / 2
        kept, share = tags[:4], weights[:4]
        score = (effect[kept] * share).sum() / share.sum() if share.sum() else 0.0
        label = int(rng.random() < 1 / (1 + np.exp(-score)))
        path = [f"{k:08x}" for k in rng.integers(0, 9, rng.integers(0, 5))]
        result.append((label, float(rng.integers(9)), [(f"t{t}", w) for t, w in zip(tags, weights)], f"s{rng.integers(3)}", path))
    return result


def line(row):
    label, x, tags, shop, path = row
    return f"{label}\t{x}\t{'|'.join(f'{key}:{weight}' for key, weight in tags)}\t{shop}\t{'/'.join(path)}"


def network(model, vocabulary, row):
    """The logit of one row in float64, written out for this model: keys looked up in lists, vectors added one by one."""
    _, x, tags, shop, path = row
    table = model.embedding.table.numpy().astype(np.float64)
    # An empty field is the one key ''.
    bags = {"tags": tags[:4] or [("", 1.0)], "shop": [(shop, 1.0)], "path": [(part, 1.0) for part in path[:3]] or [("", 1.0)]}
    first, vectors = 0, []
    for name, bag in bags.items():
        keys = vocabulary.keys(name)
        total = np.zeros(4)
        for key, weight in bag:
            total += weight * table[first + (keys.index(key) if key in keys else len(keys))]
        weights = sum(weight for _, weight in bag)
        vectors.append(total if name != "tags" else total / weights if weights else np.zeros(4))
        first += len(keys) + 1

    def layers(mlp, vector, last):
        weights = [weight.numpy().astype(np.float64) for weight in mlp.weights]
        for i in range(0, len(weights), 2):
            vector = vector @ weights[i] + weights[i + 1]
            if last or i < len(weights) - 2:
                vector = np.maximum(vector, 0)
        return vector

    bottom = layers(model.bottom_mlp, np.log1p([x]), True)
    vectors = [bottom, *vectors]
    products = [vectors[i] @ vectors[j] for i in range(4) for j in range(i)]
    return float(layers(model.top_mlp, np.concatenate([bottom, products]), False)[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`(folder, rows)` of a log that was prepared and trained on."""
    folder = tmp_path_factory.mktemp("bags")
    rows = generated(ROWS, 1)
    (folder / "log.tsv").write_text("".join(line(row) + "\n" for row in rows))
    (folder / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    main(
        ["prepare", str(folder / "log.tsv"), "-o", str(folder / "data"), "--spec", str(folder / "spec.json"), "--min-count", "2"]
    )
    records = dlrm_tf.Records.open(folder / "data")
    config = dlrm_tf.DLRMConfig(**records.config_fields(), embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1))
    options = {"optimizer": "lazy_adam", "learning_rate": 0.01, "batch_size": 64, "epochs": 3, "config": config, "quiet": True}
    dlrm_tf.fit(records, folder / "run", **options)
    return folder, rows


def test_the_trained_model_scores_as_numpy_does(trained):
    folder, rows = trained
    model, vocabulary = (
        dlrm_tf.load(folder / "run" / "model.weights.h5"),
        dlrm_tf.Vocabulary.load(folder / "data" / "vocabulary.npz"),
    )
    assert (model.config.hot_sizes, model.config.pooling, model.config.weighted) == ((4, 1, 3), ("mean", "sum", "sum"), True)
    # The last seventh is the test split.
    test = rows[ROWS - ROWS // 7 :]
    probability = 1 / (1 + np.exp(-np.array([network(model, vocabulary, row) for row in test])))
    labels = np.array([row[0] for row in test], np.float32)
    by_hand = ClickMetrics(exact=True)
    by_hand.update(labels[:, None], np.log(probability / (1 - probability))[:, None].astype(np.float32))
    wanted, measured = by_hand.result(), dlrm_tf.evaluate(folder / "data", folder / "run" / "model.weights.h5", quiet=True)
    assert measured["rows"] == len(test)
    assert measured["logloss"] == pytest.approx(wanted["logloss"], rel=1e-5)
    assert measured["auc"] == pytest.approx(wanted["auc"], abs=1e-4)
    # The scores that the labels were drawn from have 0.815 on these rows; of two tags alone 0.776, without weights 0.771.
    assert measured["auc"] > 0.8

    # Rows that training has not seen, one with keys it does not know, in every form.
    fresh = [*generated(40, 2), (0, 3.0, [("new", 2.0), ("t1", 0.5)], "none", ["x", "y", "z", "00000001"])]
    wanted = 1 / (1 + np.exp(-np.array([network(model, vocabulary, row) for row in fresh])))
    table = {
        "x": [row[1] for row in fresh],
        "tags": [[key for key, _ in row[2]] for row in fresh],
        "tags_weights": [[weight for _, weight in row[2]] for row in fresh],
        "shop": [row[3] for row in fresh],
        "path": ["/".join(row[4]) for row in fresh],
    }
    with dlrm_tf.Predictor(folder / "run" / "model.weights.h5", vocabulary, spec=folder / "spec.json", batch_size=7) as predictor:
        for form in (list(map(line, fresh)), [line(row)[2:] for row in fresh], table):
            np.testing.assert_allclose(predictor.predict(form), wanted, atol=TOLERANCE)


def test_the_command_line_scores_logs_records_and_arrays(trained, tmp_path):
    folder, rows = trained
    (tmp_path / "rows.tsv").write_text("".join(line(row) + "\n" for row in rows[-428:]))
    dense, categorical, _, weights = dlrm_tf.Records.open(folder / "data").numpy("test")
    assert len(dense) == 428
    np.savez(tmp_path / "rows.npz", dense=np.log1p(dense), categorical=categorical, weights=weights)
    target = ["--target", str(folder / "run" / "model.weights.h5"), "--batch_size", "100", "-o"]
    log = ["--vocabulary", str(folder / "data" / "vocabulary.npz"), "--spec", str(folder / "spec.json")]
    scores = []
    for path, more in ((tmp_path / "rows.tsv", log), (folder / "data", []), (tmp_path / "rows.npz", [])):
        main(["score", str(path), *more, *target, str(tmp_path / "scores.npy")])
        scores.append(np.load(tmp_path / "scores.npy"))
    assert scores[0].shape == (428,) and np.ptp(scores[0]) > 0.5
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=TOLERANCE)
    np.savez(tmp_path / "bad.npz", dense=dense, categorical=categorical, weights=weights[:, :5])
    with pytest.raises(DataError, match=r"wanted weights as float32 \[428, 8\]"):
        main(["score", "--debug", str(tmp_path / "bad.npz"), *target, str(tmp_path / "scores.npy")])


@pytest.mark.parametrize(
    ("bags", "message"),
    [
        ({**SPEC.bags, "path": dlrm_tf.Bag("/", 2)}, r"takes 3 keys of feature path, but the data has 2 \(max_keys"),
        ({**SPEC.bags, "path": dlrm_tf.Bag("/", 3, pooling="mean")}, "pools feature path by sum, but the feature spec says mean"),
        ({**SPEC.bags, "tags": dlrm_tf.Bag("|", 4, pooling="mean")}, "takes keys with weights, but the data has keys without"),
        ({}, "takes 4 keys of feature tags, but the data has 1"),
    ],
)
def test_a_model_and_other_bags_are_told_apart(trained, tmp_path, bags, message):
    folder, rows = trained
    weights, vocabulary = folder / "run" / "model.weights.h5", dlrm_tf.Vocabulary.load(folder / "data" / "vocabulary.npz")
    other = dlrm_tf.FeatureSpec(SPEC.columns, bags=bags)
    with pytest.raises(DataError, match=f"spec: wanted the columns of .*: .* {message}"):
        dlrm_tf.Predictor(weights, vocabulary, spec=other)
    (tmp_path / "log.tsv").write_text("".join(line(row) + "\n" for row in rows[:50]))
    dlrm_tf.prepare(tmp_path / "log.tsv", tmp_path / "data", spec=other, vocabulary=vocabulary)
    with pytest.raises(CheckpointError, match=f"model.weights.h5: {message}"):
        dlrm_tf.evaluate(tmp_path / "data", weights, quiet=True)
