"""Size budgets: which ids stay, what becomes of the others, and that the same raw row gets the same treatment."""

import os

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.data.records import Records
from dlrm_tf.data.synthetic import synth
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import CheckpointError, DataError, DLRMError, UsageError
from dlrm_tf.export.budget import IdRanking, count_ids, id_values, loss_of_dropping, parse_size, prune_weights
from dlrm_tf.export.tflite.build import choose_ids
from dlrm_tf.export.tflite.export import TFLiteExporter, export_tflite
from dlrm_tf.export.vocabulary import prune_vocabulary
from dlrm_tf.lite import Scorer
from dlrm_tf.lite.ids import KeptIds, encode_kept_ids
from dlrm_tf.lite.metadata import read_metadata
from dlrm_tf.model.subset import float_probabilities
from dlrm_tf.reports.size_curve import budgets_around, draw_curve, format_curve, size_curve
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber

# Every case converts a model.
pytestmark = pytest.mark.slow

ROWS = 4000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Prepared data and a model whose rows are large enough that giving them up shows."""
    folder = tmp_path_factory.mktemp("budget")
    synth(folder / "log.tsv", ROWS, seed=2)
    dlrm_tf.prepare(folder / "log.tsv", folder / "data", quiet=True)
    records = Records.open(folder / "data")
    config = dlrm_tf.DLRMConfig(records.sizes, embedding_dim=8, bottom_mlp=(32, 8), top_mlp=(64, 1))
    model = dlrm_tf.DLRM(config, seed=1)
    table = np.random.default_rng(0).normal(0, 0.4, (config.table_rows, 8)).astype(np.float32)
    model.embedding.table.assign(table)
    model.vocabulary_fingerprint = records.manifest["vocabulary"]["fingerprint"]
    model.save_weights(folder / "m.weights.h5")
    return folder, records, str(folder / "m.weights.h5")


@pytest.fixture(scope="module")
def exporter(trained):
    folder, records, weights = trained
    return TFLiteExporter(weights, data=records, vocabulary=folder / "data" / "vocabulary.npz", quiet=True)


def test_counts_are_those_of_the_train_split(trained):
    _, records, _ = trained
    _, categorical, _ = records.numpy("train")
    counts = count_ids(records, quiet=True)
    for f, size in enumerate(records.sizes):
        np.testing.assert_array_equal(counts[f], np.bincount(categorical[:, f], minlength=size + 1))


def test_ranking_by_hand():
    ranking = IdRanking([np.array([1.0, 9.0, 1.0]), np.array([0.0, 0.5]), np.array([7.0])])
    assert (ranking.minimum, ranking.total) == (3, 6)
    assert [k.tolist() for k in ranking.keep(3)] == [[1], [1], [0]]
    # Equal values: the lower id first.
    assert [k.tolist() for k in ranking.keep(4)] == [[0, 1], [1], [0]]
    assert [k.tolist() for k in ranking.keep(6)] == [[0, 1, 2], [0, 1], [0]]


def test_cost_of_an_id_is_the_loss_it_would_cost(trained):
    """Against the measured divergence of probabilities when one id is really replaced by its feature's mean row."""
    _, records, weights = trained
    dense, categorical, _ = records.numpy("train", 0, 600)
    dense = np.log1p(dense)
    counts = [np.bincount(categorical[:, f], minlength=size + 1) for f, size in enumerate(records.sizes)]
    model = dlrm_tf.load(weights)
    # Small rows: the second order is exact only near the row.
    table = model.embedding.table.numpy() * 0.05
    model.embedding.table.assign(table)
    small = os.path.join(os.path.dirname(weights), "small.weights.h5")
    model.save_weights(small)
    costs, occurrences = loss_of_dropping(small, dense, categorical, counts, quiet=True)
    before = float_probabilities(small, dense, categorical).astype(np.float64)
    for f in (5, 8, 22):
        i = int(np.argmax(counts[f][:-1]))
        start, size = model.config.block_offsets[f], records.sizes[f]
        changed = table.copy()
        changed[start + i] = np.average(table[start : start + size], axis=0, weights=counts[f][:-1])
        model.embedding.table.assign(changed)
        after = 1 / (1 + np.exp(-model({"dense": dense, "categorical": categorical}).numpy()[:, 0].astype(np.float64)))
        divergence = before * np.log(before / after) + (1 - before) * np.log((1 - before) / (1 - after))
        assert costs[f][i] == pytest.approx(divergence.sum(), rel=0.15)
        np.testing.assert_array_equal(occurrences[f], counts[f][:-1])


def test_values_by_hand():
    # Means of one occurrence 2 and 6 (weights sqrt 4, sqrt 1): feature's mean (2 * 2 + 6) / 3 = 10/3.
    values = id_values([np.array([8.0, 6.0, 0.0])], [np.array([4.0, 1.0, 0.0])], [np.array([40, 10, 5, 99])])
    mean = 100 * 10 / 3
    np.testing.assert_allclose(values[0], [40 * (8 + mean) / 104, 10 * (6 + mean) / 101, 5 * mean / 100])
    np.testing.assert_array_equal(id_values([np.zeros(2)], [np.zeros(2)], [np.array([3, 4, 0])])[0], [0, 0])


def test_dropped_rows_leave_their_mean(trained, tmp_path):
    _, records, weights = trained
    counts = count_ids(records, quiet=True)
    kept = IdRanking([c[:-1] for c in counts]).keep(400)
    prune_weights(weights, tmp_path / "p.weights.h5", kept=kept, counts=counts, quiet=True)
    with WeightsReader(weights) as reader, WeightsReader(tmp_path / "p.weights.h5") as pruned:
        assert pruned.config.categorical_feature_sizes == tuple(len(k) for k in kept)
        for f, size in enumerate(records.sizes):
            rows = reader.rows(f, 0, size + 1)
            np.testing.assert_array_equal(pruned.rows(f, 0, len(kept[f])), rows[kept[f]])
            weight = counts[f].astype(float)
            weight[kept[f]] = 0
            oov = pruned.rows(f, len(kept[f]), len(kept[f]) + 1)[0]
            wanted = np.average(rows, axis=0, weights=weight) if weight.sum() else rows[size]
            np.testing.assert_allclose(oov, wanted, atol=1e-6)
        np.testing.assert_array_equal(reader.dense("top_mlp", 0)[0], pruned.dense("top_mlp", 0)[0])


@pytest.mark.parametrize("budget", [60_000, 80_000, 150_000])
def test_the_file_fills_its_budget(exporter, tmp_path, budget):
    path = tmp_path / "m.tflite"
    report = exporter.export(path, max_size=budget)
    assert report.bytes == os.path.getsize(path)
    assert 0.75 * budget < report.bytes <= budget
    assert 26 <= report.ids < report.ids_total == sum(exporter.source.config.categorical_feature_sizes)
    assert set(report.quality) == {"auc", "logloss", "normalized_entropy", "calibration"}
    assert read_metadata(path)["errors"]["quality"] == report.quality


def test_a_larger_budget_is_closer_to_the_float_model(exporter, tmp_path):
    errors = [exporter.export(tmp_path / "m.tflite", mlp="float32", max_size=s).mean_error for s in (130_000, 160_000, 220_000)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_everything_is_kept_when_it_fits(exporter, tmp_path):
    report = exporter.export(tmp_path / "m.tflite", max_size=10_000_000)
    assert report.ids == report.ids_total
    assert "original_sizes" not in read_metadata(tmp_path / "m.tflite")


def test_ids_and_raw_rows_get_the_same_scores(trained, exporter, tmp_path):
    """Original ids, raw rows and the pruned float model agree on which id is out of vocabulary."""
    folder, records, weights = trained
    exporter.export(tmp_path / "m.tflite", mlp="float32", max_size=150_000)
    scorer = Scorer(tmp_path / "m.tflite")
    dense, categorical, _ = records.numpy("test", 0, 200)
    vocabulary = records.vocabulary()
    keys = np.empty((200, 26), object)
    for f, name in enumerate(vocabulary.names):
        known = vocabulary.keys(name)
        keys[:, f] = [known[i] for i in categorical[:, f]]
    from_ids = scorer.score(np.log1p(dense), categorical)
    np.testing.assert_array_equal(scorer.score_raw(dense, keys), from_ids)
    missing = dense.copy()
    missing[dense == 0] = np.nan
    np.testing.assert_array_equal(scorer.score_raw(missing, keys), from_ids)
    strange = keys.copy()
    strange[:, 3] = "never seen"
    out = categorical.copy()
    out[:, 3] = records.sizes[3]
    np.testing.assert_array_equal(scorer.score_raw(dense, strange), scorer.score(np.log1p(dense), out))
    out[:, 3] = -1
    np.testing.assert_array_equal(scorer.score_raw(dense, strange), scorer.score(np.log1p(dense), out))
    assert not np.array_equal(scorer.score_raw(dense, strange), from_ids)
    # The pruned float model, whose rows the file holds quantized.
    kept = choose_ids(exporter.source, 150_000, "float32", 8)
    prune_weights(weights, tmp_path / "p.weights.h5", kept=kept, counts=exporter.source.counts, quiet=True)
    pruned = float_probabilities(tmp_path / "p.weights.h5", np.log1p(dense), renumber(categorical, kept, exporter.source.config))
    np.testing.assert_allclose(from_ids, pruned, atol=5e-3)


def test_kept_ids_by_hand():
    kept = [np.array([0, 7, 300]), np.array([4])]
    translate = KeptIds(encode_kept_ids(kept), [3, 1], [1000, 5], "f").translate
    ids = np.array([[7, 4], [300, 3], [1, 5], [1000, -1], [2**31 - 1, 4], [-5, 0]])
    np.testing.assert_array_equal(translate(ids), [[1, 0], [2, 1], [3, 1], [3, 1], [3, 0], [3, 1]])
    assert translate(ids).dtype == np.int32
    for data in (b"", b"no zlib", encode_kept_ids(kept)[:-6], encode_kept_ids([*kept, np.arange(5)])):
        with pytest.raises(DLRMError, match="damaged list of kept ids"):
            KeptIds(data, [3, 1], [1000, 5], "f")


def test_pruned_vocabulary_by_hand():
    vocabulary = Vocabulary.from_keys({"a": ["0000000a", "", "long key", "0000000b"], "b": ["ffffffff", "x"]})
    pruned = prune_vocabulary(vocabulary, [np.array([1, 3]), np.array([0])])
    assert pruned.sizes == (2, 1)
    assert pruned.lookup("a", ["", "0000000b", "0000000a", "long key"]).tolist() == [0, 1, 2, 2]
    assert pruned.lookup("b", ["ffffffff", "x"]).tolist() == [0, 1]


def test_quality_gate_writes_nothing_worse(trained, tmp_path):
    """Labels drawn from the model itself: giving up ids must cost AUC."""
    _, records, weights = trained
    dense, categorical, _ = records.numpy("test")
    dense = np.log1p(dense)
    p = float_probabilities(weights, dense, categorical)
    label = (p > np.median(p)).astype(np.float32)
    exporter = TFLiteExporter(weights, evaluation=(dense, categorical, label), data=records, quiet=True)
    path = tmp_path / "m.tflite"
    wanted = r"AUC falls by 0\.\d+ \(from 1\.00000 to 0\.\d+\), more than the limit 0\.001: nothing was written"
    with pytest.raises(DLRMError, match=wanted):
        exporter.export(path, max_size=50_000, max_auc_loss=0.001)
    with pytest.raises(DLRMError, match="AUC falls by"):
        exporter.export(path, mlp="float32", table_dtype="int4", max_auc_loss=1e-6)
    assert not os.listdir(tmp_path)
    one_class = TFLiteExporter(weights, evaluation=(dense, categorical, np.ones_like(label)), data=records, quiet=True)
    with pytest.raises(DLRMError, match="one class only"):
        one_class.export(path, max_auc_loss=0.001)
    report = exporter.export(path, mlp="float32", max_auc_loss=0.001)
    assert 0 <= report.float_quality["auc"] - report.quality["auc"] <= 0.001


def test_int4_rows_are_half_as_large(trained, tmp_path):
    _, records, weights = trained
    reports = {}
    for dtype in ("int8", "int4"):
        path = tmp_path / f"{dtype}.tflite"
        options = {"mlp": "float32", "data": records, "max_auc_loss": 0.2, "quiet": True}
        reports[dtype] = export_tflite(weights, path, table_dtype=dtype, **options)
        dense, categorical, _ = records.numpy("test", 0, 50)
        assert np.isfinite(Scorer(path).score(np.log1p(dense), categorical)).all()
    assert (reports["int8"].bytes_per_row, reports["int4"].bytes_per_row) == (9, 5)
    saved = 4 * reports["int8"].table_rows
    assert reports["int8"].bytes - reports["int4"].bytes == pytest.approx(saved, abs=2000)
    assert reports["int4"].mean_error > reports["int8"].mean_error
    with pytest.warns(DeprecationWarning, match="rows is now called table_dtype"):
        assert export_tflite(weights, tmp_path / "old.tflite", rows="int4", **options).table_dtype == "int4"
    assert (tmp_path / "old.tflite").read_bytes() == (tmp_path / "int4.tflite").read_bytes()


def test_wrong_use(trained, tmp_path):
    folder, records, weights = trained
    path = tmp_path / "m.tflite"
    with pytest.raises(UsageError, match="int4 rows: needs labelled rows"):
        export_tflite(weights, path, table_dtype="int4", quiet=True)
    with pytest.raises(UsageError, match="max-auc-loss.*needs labelled rows"):
        export_tflite(weights, path, max_auc_loss=0.1, quiet=True)
    with pytest.raises(UsageError, match="needs data to choose ids by"):
        export_tflite(weights, path, max_size=50_000, quiet=True)
    with pytest.raises(UsageError, match="table_dtype must be one of int8, int4. Received 'int2'"):
        export_tflite(weights, path, table_dtype="int2", quiet=True)
    with pytest.raises(DLRMError, match="max_size 1,000 bytes is too small"):
        export_tflite(weights, path, max_size=1000, data=records, quiet=True)
    Vocabulary.from_keys({name: ["a"] for name in records.spec.categorical_names}).save(tmp_path / "v.npz")
    with pytest.raises(DataError, match="wanted the vocabulary .* has .* ids for feature"):
        export_tflite(weights, path, vocabulary=tmp_path / "v.npz", quiet=True)
    other = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=0)
    other.save_weights(tmp_path / "o.weights.h5")
    with pytest.raises(CheckpointError, match="ids for feature"):
        export_tflite(tmp_path / "o.weights.h5", path, data=records, quiet=True)
    export_tflite(weights, path, quiet=True)
    with pytest.raises(DLRMError, match="carries no vocabulary; export it with --vocabulary"):
        Scorer(path).score_raw(np.zeros((1, 13)), [[""] * 26])


@pytest.mark.parametrize("text, size", [("20MB", 20_000_000), ("1.5 mb", 1_500_000), ("64KiB", 65_536), ("900", 900)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-3MB", "5 TB", "1e3", "nan", "0"])
def test_text_that_is_no_size(text):
    with pytest.raises(UsageError, match="wanted a size such as 20MB"):
        parse_size(text)


def test_curve_rises_to_the_float_model(exporter, tmp_path):
    reports = size_curve(exporter, [1000, 60_000, 90_000, 10_000_000, 20_000_000])
    # 1,000 bytes are too few, and the third budget that fits holds every id.
    assert [r.ids == r.ids_total for r in reports] == [False, False, True]
    assert reports[0].mean_error > reports[2].mean_error
    lines = format_curve(reports).splitlines()
    assert len(lines) == 5
    assert f"{reports[1].bytes:,}" in lines[2] and f"{reports[1].quality['auc']:.5f}" in lines[2]
    assert lines[-1].endswith("float32")
    draw_curve(reports, str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert budgets_around(16_000_000)[0] == 1_000_000
    with pytest.raises(DLRMError, match="too small"):
        size_curve(exporter, [1000])


def test_command_line(trained, tmp_path, capsys):
    folder, records, weights = trained
    path = tmp_path / "m.tflite"
    arguments = ["export", "tflite", "--weights", weights, "-o", str(path), "--data", str(folder / "data")]
    assert main([*arguments, "--max-size", "100KB", "--vocabulary", str(folder / "data" / "vocabulary.npz")]) == 0
    out = capsys.readouterr().out
    assert "|probability - float probability|" in out and "calibration" in out
    assert path.stat().st_size <= 100_000
    before = path.read_bytes()
    assert main([*arguments, "--max-size", "60KB", "--max-auc-loss", "-0.9"]) == 1
    assert "AUC falls by" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main([*arguments, "--rows", "int4", "--max-auc-loss", "1"]) == 0
    assert "int4 rows" in capsys.readouterr().out
    assert main([*arguments, "--curve", str(tmp_path / "c.png")]) == 2
    assert main([*arguments, "--max-size", "lots"]) == 2
    assert "wanted a size such as 20MB" in capsys.readouterr().err
