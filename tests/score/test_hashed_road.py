"""The whole road of hashed features and shared tables: a raw row has one probability wherever it is scored."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.errors import CheckpointError, DataError
from dlrm_tf.export.ascend.export import export_ascend
from dlrm_tf.export.savedmodel.export import export_savedmodel
from dlrm_tf.export.tflite.build import choose_ids
from dlrm_tf.export.tflite.export import TFLiteExporter
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.lite import Scorer
from dlrm_tf.score.client import Client
from dlrm_tf.serve import ModelServer

tf = tensorflow()
pytestmark = pytest.mark.slow  # training compiles its graph
# Rows of the same model in TensorFlow, in two graphs (seen: 6e-8).
TOLERANCE = 1e-6
COLUMNS = (
    *(("clicked", "label"), ("x", "int"), ("shown", "categorical"), ("shop", "categorical"), ("bought", "categorical")),
    *(("query", "categorical"), ("user", "categorical"), ("device", "categorical")),
)
SPECS = {
    # A bag shares the keys of `shown`, another hashed one those of `query`.
    "bags": dlrm_tf.FeatureSpec(
        COLUMNS,
        bags={"bought": dlrm_tf.Bag("|", 3, "mean"), "user": dlrm_tf.Bag(",", 2)},
        hashed={"query": 5000, "user": 5000, "device": 40},
        shared={"item": ("shown", "bought"), "word": ("query", "user")},
    ),
    # No bags: `raw` without splitting, tf.Examples of ids.
    "one key": dlrm_tf.FeatureSpec(
        COLUMNS, hashed={"query": 6000, "user": 6000, "device": 6000}, unified={"rare": ("query", "user", "device")}
    ),
}


def cells_of(spec, rows, seed):
    """`(x int [rows], texts [rows][6], label [rows])`; the label follows from the item shown and from the user's first key."""
    rng = np.random.default_rng(seed)
    effect = np.random.default_rng(0).normal(0, 1.5, (2, 40))
    result, labels = [], []
    for _ in range(rows):
        shown, user = rng.integers(40, size=2)
        many = "bought" in spec.bags
        bought = "|".join(f"{k:08x}" for k in rng.integers(60, size=rng.integers(0, 5))) if many else f"i{rng.integers(60)}"
        users = f"u{user},u{rng.integers(90)}" if many else f"u{user}"
        query = rng.choice(["", f"{rng.integers(2**32):08x}", f"a query of several words, number {rng.integers(9)}"])
        result.append([f"{shown:08x}", f"s{rng.integers(3)}", bought, query, users, f"d{rng.integers(999)}"])
        labels.append(int(rng.random() < 1 / (1 + np.exp(-effect[0, shown] - effect[1, user]))))
    return rng.integers(0, 50, rows), result, labels


class Road:
    """A log, prepared and trained on, and rows that training has not seen."""

    def __init__(self, spec, folder):
        self.spec, self.folder = spec, folder
        numbers, cells, labels = cells_of(spec, 1500, 1)
        (folder / "log.tsv").write_text(
            "".join("\t".join([str(y), str(x), *row]) + "\n" for x, row, y in zip(numbers, cells, labels))
        )
        (folder / "spec.json").write_text(json.dumps(spec.to_dict()))
        self.records = dlrm_tf.prepare(folder / "log.tsv", folder / "data", spec=spec)
        config = dlrm_tf.DLRMConfig(**self.records.config_fields(), embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1))
        options = {
            "optimizer": "lazy_adam",
            "learning_rate": 0.1,
            "batch_size": 64,
            "epochs": 2,
            "config": config,
            "quiet": True,
        }
        dlrm_tf.fit(self.records, folder / "run", **options)
        self.weights, self.keys = folder / "run" / "model.weights.h5", folder / "data" / "vocabulary.npz"
        self.numbers, self.cells, _ = cells_of(spec, 70, 2)
        self.cells[0] = ["never seen"] * 6
        self.cells[1] = [""] * 6
        self.dense = self.numbers[:, None].astype(np.float32)
        self.table = {"x": self.numbers.tolist(), **dict(zip(spec.categorical_names, zip(*self.cells)))}
        with dlrm_tf.Predictor(self.weights, self.keys, spec=folder / "spec.json") as predictor:
            self.probability = predictor.predict(self.table)


@pytest.fixture(scope="module")
def make_road(tmp_path_factory):
    """Function `name of a spec -> Road`, made when first asked for."""
    return functools.cache(lambda kind: Road(SPECS[kind], tmp_path_factory.mktemp("hashed")))


@pytest.fixture(scope="module", params=list(SPECS))
def road(request, make_road):
    return make_road(request.param)


@pytest.fixture(scope="module")
def served(road, tmp_path_factory):
    return export_savedmodel(
        road.weights, tmp_path_factory.mktemp("served"), vocabulary=road.keys, spec=road.spec, warmup_batches=(1,)
    )


def test_training_learns_through_hashes(road):
    assert dlrm_tf.evaluate(road.records, road.weights, quiet=True)["auc"] > 0.7
    assert road.probability.std() > 0.1
    config = dlrm_tf.load(road.weights).config
    shared = {"bags": (0, 1, 0, 2, 2, 3), "one key": (0, 1, 2, 3, 3, 3)}["bags" if road.spec.bags else "one key"]
    assert config.feature_tables == shared


def test_every_form_of_a_row(road, tmp_path):
    """Lines of a log, a table, single rows (looked up in another way), and the command line."""
    lines = ["\t".join([str(x), *row]) for x, row in zip(road.numbers, road.cells)]
    with dlrm_tf.Predictor(road.weights, road.keys, spec=road.spec, batch_size=9) as predictor:
        np.testing.assert_allclose(predictor.predict(lines), road.probability, atol=TOLERANCE)
    (tmp_path / "rows.tsv").write_text("".join(line + "\n" for line in lines))
    command = ["score", str(tmp_path / "rows.tsv"), "--target", str(road.weights), "--vocabulary", str(road.keys)]
    assert main([*command, "--spec", str(road.folder / "spec.json"), "-o", str(tmp_path / "s.npy")]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), road.probability, atol=TOLERANCE)


def test_a_server_hashes_in_the_graph(road, served):
    base = str(served).rsplit("/", 1)[0]
    with ModelServer(model_name="dlrm", model_base_path=base, rest_api_port=0) as server:
        for address in (server.target, server.rest_target):
            with Client(address) as client:
                inputs = {"dense": road.dense, "categorical": np.array(road.cells, object)}
                came = client.predict(inputs, signature_name="raw", outputs=("probability",))
            np.testing.assert_allclose(came["probability"][:, 0], road.probability, atol=TOLERANCE)
    with dlrm_tf.Predictor(served, road.keys, spec=road.spec) as predictor:
        np.testing.assert_allclose(predictor.predict(road.table), road.probability, atol=TOLERANCE)


def test_the_graph_of_raw(road, served):
    """Stock operations: one of hashing for each number of buckets, and the keys of a shared vocabulary once."""
    loaded = tf.saved_model.load(served)
    found = loaded.signatures["raw"].graph.as_graph_def()
    nodes = [*found.node, *(node for function in found.library.function for node in function.node_def)]
    buckets = sorted({node.attr["num_buckets"].i for node in nodes if node.op == "StringToHashBucketFast"})
    assert buckets == sorted({*road.spec.hashed.values(), 2**63 - 1})
    vocabulary = road.records.vocabulary()
    assert loaded.string_ids.ids.shape == sum(
        keys.size for keys in vocabulary.key_sets if keys.numeric()[0].size + len(keys.others())
    )


def test_examples_with_keys(make_road, tmp_path):
    """Models without bags take ids in tf.Examples."""
    road, examples = make_road("bags"), []
    served = export_savedmodel(road.weights, tmp_path, vocabulary=road.keys, spec=road.spec, warmup_batches=(1,))
    for dense, row in zip(road.dense, road.cells):
        features = {"dense": tf.train.Feature(float_list=tf.train.FloatList(value=dense))}
        for name, cell in zip(road.spec.categorical_names, row):
            keys = cell.split(road.spec.bags[name].separator) if name in road.spec.bags else [cell]
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[key.encode() for key in keys]))
        examples.append(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    came = tf.saved_model.load(served).signatures["regress"](inputs=tf.constant(examples))["outputs"]
    np.testing.assert_allclose(came, road.probability, atol=TOLERANCE)


def test_a_device_hashes_in_numpy(road, tmp_path):
    exporter = TFLiteExporter(road.weights, data=road.records, vocabulary=road.keys, quiet=True)
    whole = exporter.export(tmp_path / "m.tflite", mlp="float32")
    ids = Encoder(road.spec, road.records.vocabulary()).columns(road.table)[1]
    scorer = Scorer(tmp_path / "m.tflite")
    came = scorer.score_raw(road.dense, road.cells)
    np.testing.assert_allclose(came, road.probability, atol=0.02)  # rows of eight bits
    np.testing.assert_array_equal(scorer.score(np.log1p(road.dense), ids), came)
    assert whole.ids == whole.ids_total == road.records.num_ids
    assert whole.table_rows == whole.ids + 2 * len(set(road.spec.id_spaces.tables))
    # A smaller file leaves buckets out, the same for all features of a table.
    size = whole.bytes  # 8 KiB are set aside for the metadata, which is shorter
    report = exporter.export(tmp_path / "small.tflite", mlp="float32", max_size=size)
    assert report.bytes <= size and report.ids < whole.ids and report.max_error < 0.3
    kept = choose_ids(exporter.source, size, "float32", 8)
    for a, b in ((0, 2), (3, 4)) if road.spec.bags else ((3, 4), (4, 5)):
        np.testing.assert_array_equal(kept[a], kept[b])
    small = Scorer(tmp_path / "small.tflite")
    np.testing.assert_array_equal(small.score_raw(road.dense, road.cells), small.score(np.log1p(road.dense), ids))


def test_scoring_on_a_device_needs_no_tensorflow(make_road, tmp_path):
    road, path = make_road("bags"), tmp_path / "m.tflite"
    TFLiteExporter(road.weights, vocabulary=road.keys, spec=road.spec, quiet=True).export(path, mlp="float32")
    code = (
        "import sys, json; from dlrm_tf.lite import Scorer; scorer = Scorer(sys.argv[1]); rows = json.load(sys.stdin); "
        "print(json.dumps(scorer.score_raw(*rows).tolist())); assert 'tensorflow' not in sys.modules"
    )
    rows = json.dumps([road.dense.tolist(), road.cells])
    done = subprocess.run([sys.executable, "-c", code, path], input=rows, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), road.probability, atol=0.02)


def test_ascend_with_fewer_buckets(make_road, tmp_path, monkeypatch):
    road = make_road("bags")
    monkeypatch.setenv("PATH", str(tmp_path))
    config = dlrm_tf.load(road.weights).config
    options = {"data": road.records, "vocabulary": road.keys, "max_table_bytes": (config.table_rows - 100) * 16}
    done = export_ascend(road.weights, tmp_path / "out", quiet=True, **options)
    assert done.total == config.num_ids and done.kept == config.num_ids - 100
    vocabulary = dlrm_tf.Vocabulary.load(tmp_path / "out" / "vocabulary.npz")
    with np.load(tmp_path / "out" / "kept_ids.npz") as kept:
        assert vocabulary.sizes == tuple(len(kept[f"feature_{f}"]) for f in range(6))
    graph_def = tf.compat.v1.GraphDef.FromString((tmp_path / "out" / "frozen_graph.pb").read_bytes())
    names = json.loads((tmp_path / "out" / "ascend.json").read_text())
    with tf.Graph().as_default() as graph, np.load(tmp_path / "out" / "check.npz") as check:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            came = session.run(names["output"], {f"{name}:0": check[name] for name in names["inputs"]})
        np.testing.assert_allclose(came, check["probability"], atol=TOLERANCE)


def test_another_hash_is_told_from_the_models(road, tmp_path):
    plain = dlrm_tf.FeatureSpec(COLUMNS, bags=road.spec.bags)
    other = dlrm_tf.prepare(road.folder / "log.tsv", tmp_path / "data", spec=plain)
    with pytest.raises(CheckpointError, match=r"has .* ids for feature|features share others"):
        dlrm_tf.evaluate(other, road.weights, quiet=True)
    hashed = dict(zip(plain.categorical_names, road.records.sizes))
    unshared = dlrm_tf.FeatureSpec(COLUMNS, bags=road.spec.bags, hashed=hashed)
    other = dlrm_tf.prepare(road.folder / "log.tsv", tmp_path / "hashed", spec=unshared)
    with pytest.raises(CheckpointError, match="has the tables .* features share others"):
        dlrm_tf.evaluate(other, road.weights, quiet=True)
    with pytest.raises(DataError, match="features share others"):
        dlrm_tf.Predictor(road.weights, other.vocabulary(), spec=unshared)
