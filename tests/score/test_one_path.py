"""One path from a raw row to a probability: hostile rows score the same however they come in."""

import csv
import dataclasses
import gzip
import io
import json
import math

import numpy as np
import pytest
import urllib3

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.data.features import LARGEST
from dlrm_tf.errors import DataError, DLRMError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.lite.metadata import VOCABULARY, read_entry
from dlrm_tf.probability import sigmoid
from dlrm_tf.score import Client, open_target
from dlrm_tf.serve import ModelServer

tf = tensorflow()
SPEC = dlrm_tf.FeatureSpec(
    (("a", "categorical"), ("x", "float"), ("clicked", "label"), ("n", "int"), ("skipped", "skip"), ("b", "categorical"))
)
# Keys of the training log: hex, upper-case hex, '', nine digits, non-ASCII, text that is not UTF-8.
KEYS = ["deadbeef", "DEADBEEF", "", "123456789", "Zürich", "\udcff\udcfe", "00000000", "0"]
KNOWN = [(KEYS[i], KEYS[(i + 3) % len(KEYS)]) for i in range(len(KEYS))]
# Rows that are scored: (x, n, a, b), cells as texts.
ROWS = [
    *(("1.5", "3", a, b) for a, b in KNOWN),
    ("", "", "", ""),
    ("-7", "-1", "deadbeef", "DeadBeef"),
    ("0", "-0", "never seen", "\udcff"),
    ("1e38", "99999999999", "0000000g", "12345678"),
    (repr(LARGEST), "2147483648", "deadbeef0", " "),
    ("1e-45", "1", "\U0001f980", "\udcff\udcfe"),
    ("-1e38", "16777217", "None", "nan"),
    (" 2.5 ", "+7", "NaN", "00000000 "),
]
# float32 through the same five layers, in other orders of summation (seen: 5e-8).
TOLERANCE = 1e-6
# float32 layers, but the table's rows are int8 (seen: 8e-4, of probabilities up to 0.2).
LITE_TOLERANCE = 2e-3


def line(row, label="0"):
    x, n, a, b = row
    return "\t".join([a, x, *([label] if label else []), n, "s", b])


def encoded(lines):
    return "\n".join(lines).encode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder with the vocabulary of a prepared log and a random model in every form."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "log.tsv").write_bytes(encoded([line(("1", "1", a, b), "1") for a, b in KNOWN]))
    records = dlrm_tf.prepare(folder / "log.tsv", folder / "data", spec=SPEC, test_fraction=0)
    config = dlrm_tf.DLRMConfig(records.sizes, dense_dim=2, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1))
    keras = dlrm_tf.DLRM(config, seed=3)
    keras.embedding.table.assign(np.random.default_rng(3).normal(0, 1, (config.table_rows, 4)).astype(np.float32))
    keras.vocabulary_fingerprint = records.vocabulary().fingerprint
    keras.save_weights(folder / "m.weights.h5")
    vocabulary = folder / "data" / "vocabulary.npz"
    dlrm_tf.export_savedmodel(folder / "m.weights.h5", folder, vocabulary=vocabulary, warmup_batches=(1,))
    dlrm_tf.export_tflite(folder / "m.weights.h5", folder / "m.tflite", mlp="float32", vocabulary=vocabulary, quiet=True)
    return folder


@pytest.fixture(scope="module")
def wanted(model):
    """Probabilities through prepare and the training pipeline, with the fixed vocabulary."""
    (model / "rows.tsv").write_bytes(encoded(map(line, ROWS)))
    vocabulary = dlrm_tf.Vocabulary.load(model / "data" / "vocabulary.npz")
    records = dlrm_tf.prepare(model / "rows.tsv", model / "rows", spec=SPEC, vocabulary=vocabulary, test_fraction=0)
    assert records.rows("train") == len(ROWS)
    logits = dlrm_tf.load(model / "m.weights.h5").predict(records.dataset("train", 4), verbose=0)
    probabilities = sigmoid(logits[:, 0])
    assert np.ptp(probabilities) > 0.1
    # By the formula, from Python's own reading of the cells.
    formula = [[math.log1p(min(max(float(cell or 0), 0), LARGEST)) for cell in row[:2]] for row in ROWS]
    known = vocabulary.keys("a"), vocabulary.keys("b")
    ids = [[keys.index(key) if key in keys else len(keys) for keys, key in zip(known, row[2:])] for row in ROWS]
    by_hand = dlrm_tf.load(model / "m.weights.h5")({"dense": np.float32(formula), "categorical": np.int32(ids)}).numpy()
    np.testing.assert_allclose(probabilities, sigmoid(by_hand[:, 0]), atol=TOLERANCE)
    return probabilities


def arrays():
    """ROWS as Python values: dense float32 with NaN for a missing cell, categories as bytes."""
    dense = np.array([[float(cell) if cell else math.nan for cell in row[:2]] for row in ROWS], np.float32)
    return dense, np.array([[key.encode("utf-8", "surrogateescape") for key in row[2:]] for row in ROWS], object)


def columns(missing):
    """ROWS as columns; a missing number, and the key '', is `missing`."""
    x, n, a, b = zip(*ROWS)
    numbers = {name: [float(cell) if cell else missing for cell in cells] for name, cells in (("x", x), ("n", n))}
    return {**numbers, "a": [key or missing for key in a], "b": [key or missing for key in b]}


@pytest.fixture(scope="module")
def server(model):
    with ModelServer(model_name="dlrm", model_base_path=str(model / "dlrm"), rest_api_port=0) as server:
        yield server


# Files of `model`, and attributes of `server`.
TARGETS = ["m.weights.h5", "dlrm", "m.tflite", "target", "rest_target"]


def place(model, server, target):
    return getattr(server, target, None) or model / target


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch_size", [3, 1024])
def test_predictor(model, server, wanted, target, batch_size):
    vocabulary, target = model / "data" / "vocabulary.npz", place(model, server, target)
    with dlrm_tf.Predictor(target, vocabulary, spec=SPEC, batch_size=batch_size) as predictor:
        forms = [list(map(line, ROWS)), [encoded([line(row, label="")]) + b"\r\n" for row in ROWS]]
        forms += [columns(missing) for missing in (None, math.nan, "")]
        for form in forms:
            scores = predictor.predict(form)
            assert scores.dtype == np.float32 and scores.shape == (len(ROWS),)
            np.testing.assert_allclose(scores, wanted, atol=LITE_TOLERANCE if target == model / "m.tflite" else TOLERANCE)


def test_predictor_of_a_frame(model, wanted):
    pandas = pytest.importorskip("pandas")
    predictor = dlrm_tf.Predictor(model / "m.weights.h5", model / "data" / "vocabulary.npz", spec=SPEC)
    for missing in (None, pandas.NA, math.nan, ""):
        frame = pandas.DataFrame({name: pandas.Series(cells, dtype=object) for name, cells in columns(missing).items()})
        np.testing.assert_allclose(predictor.predict(frame), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("label", ["1", ""])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_score_of_a_raw_log(model, wanted, tmp_path, label, pack, ending):
    lines = [encoded([line(row, label)]) for row in ROWS]
    (tmp_path / "log").write_bytes(pack(ending.join(lines)))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    command = f"score {tmp_path}/log --target {model}/m.weights.h5 --vocabulary {model}/data/vocabulary.npz"
    assert main([*command.split(), "--spec", f"{tmp_path}/spec.json", "--batch_size", "7", "-o", f"{tmp_path}/p.npy"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), wanted, atol=TOLERANCE)


def test_signatures_on_a_server(server, model, wanted):
    """Raw rows through `raw`, ids in tf.Examples through `regress` and `classify`; dense features stand there as in the log."""
    dense, keys = arrays()
    for target in (server.target, server.rest_target):
        with Client(target) as client:
            raw = client.predict({"dense": dense, "categorical": keys}, signature_name="raw", outputs=("probability",))
        np.testing.assert_allclose(raw["probability"][:, 0], wanted, atol=TOLERANCE)
    vocabulary = dlrm_tf.Vocabulary.load(model / "data" / "vocabulary.npz")
    ids = np.stack([vocabulary.lookup(name, keys[:, f]) for f, name in enumerate(vocabulary.names)], axis=1).astype(np.int64)
    outside = ids == vocabulary.sizes
    assert outside.any()
    # What stands for "out of vocabulary" may be any id outside the range, also one beyond int32.
    for beyond in (0, -(2**40), 2**40):
        rows = zip(dense.tolist(), np.where(outside, ids + beyond, ids).tolist())
        body = {"examples": [{"dense": numbers, "categorical": row} for numbers, row in rows]}
        for method in ("regress", "classify"):
            url = f"{server.rest_target}/v1/models/dlrm:{method}"
            results = urllib3.request("POST", url, json={"signature_name": method, **body}).json()["results"]
            scores = results if method == "regress" else [dict(row)["1"] for row in results]
            np.testing.assert_allclose(scores, wanted, atol=TOLERANCE)


@pytest.mark.parametrize("target", TARGETS)
def test_ids_of_any_integer_type_and_nothing_else(model, server, target):
    dense = np.ones((1, 2), np.float32)
    with open_target(place(model, server, target)) as opened:
        out, known = opened.score(dense, np.full((1, 2), -1)), opened.score(dense, np.ones((1, 2), int))
        assert out != known
        for wrapped in (2**32 + 1, -(2**32) + 1, 2**63 - 1, -(2**63)):
            np.testing.assert_array_equal(opened.score(dense, np.full((1, 2), wrapped)), out)
        np.testing.assert_array_equal(opened.score(dense, np.full((1, 2), 2**64 - 1, np.uint64)), out)
        np.testing.assert_array_equal(opened.score(dense, np.ones((1, 2), np.uint8)), known)
        for bad in (np.full((1, 2), 1.9), np.ones((1, 2)), np.full((1, 2), True), np.full((1, 2), "1")):
            with pytest.raises(DataError, match=f"categorical must be integer ids. Received {bad.dtype}$"):
                opened.score(dense, bad)


def test_scorer_of_the_device(model, wanted):
    dense, keys = arrays()
    scorer = dlrm_tf.lite.Scorer(model / "m.tflite")
    scores = scorer.score_raw(dense, keys)
    np.testing.assert_allclose(scores, wanted, atol=LITE_TOLERANCE)
    for missing in (None, math.nan, ""):
        table = columns(missing)
        numbers, strings = (list(zip(*(table[name] for name in names))) for names in ("xn", "ab"))
        np.testing.assert_array_equal(scorer.score_raw(numbers, strings), scores)
        one_by_one = [scorer.score_raw([n], [s])[0] for n, s in zip(numbers, strings)]
        np.testing.assert_allclose(one_by_one, scores, atol=TOLERANCE)


def test_a_damaged_vocabulary_in_the_devices_file_is_named(model, tmp_path):
    content, vocabulary = (model / "m.tflite").read_bytes(), read_entry(str(model / "m.tflite"), VOCABULARY)
    (tmp_path / "m.tflite").write_bytes(content.replace(vocabulary, vocabulary[:-4] + b"oops"))
    with pytest.raises(DLRMError, match=f"{tmp_path}/m.tflite: damaged vocabulary in the file"):
        dlrm_tf.lite.Scorer(tmp_path / "m.tflite").score_raw(*arrays())


@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_infinity_is_an_error_where_it_can_be_told_and_missing_in_a_graph(model, tmp_path, infinity):
    """A text: a bad line. Python values: DataError. A graph, which must not fail the rows of other callers: missing."""
    bad = line((str(infinity), "3", "deadbeef", "0"))
    good = line(("1", "3", "deadbeef", "0"))
    (tmp_path / "log.tsv").write_text("\n".join([good, bad]))
    records = dlrm_tf.prepare(tmp_path / "log.tsv", tmp_path / "data", spec=SPEC, test_fraction=0)
    assert (records.rows("train"), records.manifest["counts"]["bad_lines"]) == (1, 1)
    predictor = dlrm_tf.Predictor(model / "m.weights.h5", model / "data" / "vocabulary.npz", spec=SPEC)
    with pytest.raises(DataError, match=r"rows: row 1: column 2 \(x\): wanted a finite number"):
        predictor.predict([good, bad])
    with pytest.raises(DataError, match="rows: row 1, x: wanted a finite number"):
        predictor.predict({"x": [1, infinity], "n": [3, 3], "a": ["", ""], "b": ["", ""]})
    with pytest.raises(DataError, match="m.tflite: row 1, .*: wanted a finite number"):
        dlrm_tf.lite.Scorer(model / "m.tflite").score_raw([[1, 3], [infinity, 3]], [["", ""], ["", ""]])
    raw = tf.saved_model.load(str(model / "dlrm" / "1")).signatures["raw"]
    keys = tf.constant([["deadbeef", "0"]] * 2)
    scores = raw(dense=tf.constant([[infinity, 3], [math.nan, 3]]), categorical=keys)["probability"].numpy()
    assert np.isfinite(scores).all() and scores[0] == scores[1]


MARKERS = ("NULL", r"\N")


@pytest.fixture(scope="module")
def marked(model, tmp_path_factory):
    """The model exported with a spec of logs with markers of missing cells; that spec's file beside it."""
    folder = tmp_path_factory.mktemp("marked")
    spec = dataclasses.replace(SPEC, missing=MARKERS)
    options = {"vocabulary": model / "data" / "vocabulary.npz", "spec": spec}
    dlrm_tf.export_savedmodel(model / "m.weights.h5", folder, warmup_batches=(1,), **options)
    dlrm_tf.export_tflite(model / "m.weights.h5", folder / "m.tflite", mlp="float32", quiet=True, **options)
    return folder, spec


def with_markers():
    """ROWS with a marker in each missing cell."""
    return [tuple(cell or MARKERS[i % 2] for i, cell in enumerate(row)) for row in ROWS]


def test_markers_of_missing_cells(model, marked, wanted):
    """They are missing as texts in every form of rows, in the graph and on the device."""
    folder, spec = marked
    rows, vocabulary = with_markers(), model / "data" / "vocabulary.npz"
    x, n, a, b = zip(*rows)
    for target in ("m.weights.h5", "dlrm"):
        with dlrm_tf.Predictor(model / target, vocabulary, spec=spec) as predictor:
            for form in (list(map(line, rows)), {"x": x, "n": n, "a": a, "b": b}):
                np.testing.assert_allclose(predictor.predict(form), wanted, atol=TOLERANCE)
    dense, _ = arrays()
    keys = [[key.encode("utf-8", "surrogateescape") for key in row[2:]] for row in rows]
    raw = tf.saved_model.load(str(folder / "dlrm" / "1")).signatures["raw"]
    scores = raw(dense=tf.constant(dense), categorical=tf.constant(keys))["probability"].numpy()
    np.testing.assert_allclose(scores[:, 0], wanted, atol=TOLERANCE)
    device = dlrm_tf.lite.Scorer(folder / "m.tflite").score_raw([row[:2] for row in rows], keys)
    np.testing.assert_allclose(device, wanted, atol=LITE_TOLERANCE)


@pytest.mark.parametrize("form", ["csv", "csv without labels", "folder", "pattern", "standard input"])
def test_score_of_text_in_any_form(model, wanted, form, tmp_path, monkeypatch):
    """CSV with quotes and a header, markers, several files, a pipe; no label column is needed in spec or file."""
    rows = with_markers()
    columns = [column for column in SPEC.columns if column[1] != "label"] if form != "csv" else SPEC.columns
    spec = {"columns": columns, "separator": ",", "header": True, "quote": '"', "missing": MARKERS[:1]}
    written = ["b", "x", "clicked", "a", "n"] if form == "csv" else ["b", "x", "a", "n"]

    def write(part, path):
        file = io.StringIO(newline="")
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(written)
        for x, n, a, b in part:
            cells = {"x": x, "n": n, "a": a, "b": b, "clicked": "0.0"}
            writer.writerow([cells[name] for name in written])
        path.write_bytes(encoded([file.getvalue()]))

    named = {"folder": "logs", "pattern": "logs/part_*", "standard input": "-"}.get(form, "log.csv")
    (tmp_path / "logs").mkdir()
    if form in ("folder", "pattern"):
        write(rows[:5], tmp_path / "logs" / "part_9")
        write(rows[5:], tmp_path / "logs" / "part_10")
    else:
        write(rows, tmp_path / "log.csv")
        if named == "-":
            monkeypatch.setattr("sys.stdin", (tmp_path / "log.csv").open(encoding="latin-1"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = f"score {named} --target {model}/m.weights.h5 --vocabulary {model}/data/vocabulary.npz --spec spec.json -o p.npy"
    assert main([*command.split(), "--missing", MARKERS[1], "--batch_size", "7"]) == 0
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), wanted, atol=TOLERANCE)


def test_quotes_are_read_or_refused(model, wanted, tmp_path, capsys):
    """A spec without a word on quotes: the first quoted category stops the scoring, with what to say."""
    (tmp_path / "log").write_bytes(encoded([line((x, n, f'"{a}"', b)) for x, n, a, b in ROWS]))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    command = f"score {tmp_path}/log --target {model}/m.weights.h5 --vocabulary {model}/data/vocabulary.npz"
    arguments = [*command.split(), "--spec", f"{tmp_path}/spec.json", "-o", f"{tmp_path}/p.npy"]
    assert main(arguments) == 1
    assert "column 1 (a): wanted no double quotes around a category" in capsys.readouterr().err
    quoted = dataclasses.replace(SPEC, quote='"')
    (tmp_path / "spec.json").write_text(json.dumps(quoted.to_dict()))
    assert main(arguments) == 0
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), wanted, atol=TOLERANCE)
    predictor = dlrm_tf.Predictor(model / "m.weights.h5", model / "data" / "vocabulary.npz", spec=quoted)
    with pytest.raises(DataError, match="rows: wanted a whole line in each row. Received one that ends within quotes"):
        predictor.predict([line(("1", "1", '"a', "b")), line(("1", "1", 'b"', "b"))])


def test_predictor_needs_no_label_in_its_spec(model, wanted):
    spec = dlrm_tf.FeatureSpec(tuple(column for column in SPEC.columns if column[1] != "label"))
    predictor = dlrm_tf.Predictor(model / "m.weights.h5", model / "data" / "vocabulary.npz", spec=spec)
    for form in ([line(row, label="") for row in ROWS], columns(None)):
        np.testing.assert_allclose(predictor.predict(form), wanted, atol=TOLERANCE)
