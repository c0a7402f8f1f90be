"""drift of data folders: figures by hand, vocabularies that differ, splits, scores, exit codes."""

import dataclasses
import json
import math

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf import Bag, DLRMConfig, FeatureSpec, Records, Vocabulary, drift, prepare
from dlrm_tf.cli.main import main
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.fresh.sample import Sample
from dlrm_tf.fresh.side import Rows
from dlrm_tf.probability import sigmoid

SPEC = FeatureSpec((("y", "label"), ("n", "int"), ("c", "categorical")), separator=",")


def folder(path, rows, *, spec=SPEC, test_fraction=0, **options):
    """A data folder of `(label, number, key)` rows."""
    path.mkdir()
    (path / "log.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    prepare(path / "log.csv", path / "data", spec=spec, test_fraction=test_fraction, **options)
    return path / "data"


def by_name(found):
    return {feature.name: feature for feature in found.features}


def test_by_hand(tmp_path):
    a = folder(
        tmp_path / "a", [(1, "", "p"), (0, 0, "p"), (0, 1, "q"), (1, 1, "r"), (0, 5, ""), (0, 5, "p"), (0, 9, "q"), (1, 9, "p")]
    )
    b = folder(tmp_path / "b", [(1, "", "q"), (0, "", "new"), (1, 1, "p"), (1, 2, "")])
    found = drift(a, b, bins=2, top_keys=1)
    assert (found.names, found.rows, found.label_rate) == ((str(a), str(b)), (8, 4), (3 / 8, 3 / 4))
    n, c = found.features
    # n: missing 1/8, 2/4; 0 1/8, 0/4; A's numbers above 0 are 1 1 5 5 9 9: below 3 (halfway in log) 2/8, 2/4; above 4/8, 0/4.
    shares = [(1 / 8, 2 / 4), (1 / 8, 0.0001), (2 / 8, 2 / 4), (4 / 8, 0.0001)]
    assert n.psi == pytest.approx(sum((q - p) * math.log(q / p) for p, q in shares), rel=1e-12)
    assert (n.kind, n.missing, n.new, n.keys, n.noise) == (
        "dense",
        (1 / 8, 2 / 4),
        None,
        None,
        pytest.approx(3 * (1 / 8 + 1 / 4)),
    )
    assert [(part.name, part.share) for part in n.moved[:2]] == [("above 0, above 2.464", (4 / 8, 0)), ("0 or below", (1 / 8, 0))]
    # c: the key p 4/8, 1/4; other keys (q, r) 3/8, 1/4; missing 1/8, 1/4; new 0/8, 1/4.
    shares = [(4 / 8, 1 / 4), (3 / 8, 1 / 4), (1 / 8, 1 / 4), (0.0001, 1 / 4)]
    assert c.psi == pytest.approx(sum((q - p) * math.log(q / p) for p, q in shares), rel=1e-12)
    assert (c.missing, c.new, c.unknown, c.keys) == ((1 / 8, 1 / 4), 1 / 4, 1 / 4, (4, 4))
    assert [part.name for part in c.moved] == ["new or unknown keys", "key p", "missing"]
    assert found.over() == []
    assert found.over(max_psi=c.psi, max_new=0.2) == [f"n PSI {n.psi:.4f}", "c new keys 25.00%"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_new_and_unknown_keys_with_other_vocabularies(tmp_path):
    """By its key, whatever ids: a vocabulary that has more keys than A's rows, a fixed one, rare keys left out."""
    known = Vocabulary.from_keys({"c": ["0000000a", "z", "old"]})
    a = folder(tmp_path / "a", [(0, 1, key) for key in ("z", "0000000a", "z", "q")], vocabulary=known, grow=True)
    rows = [(0, 1, key) for key in ("q", "old", "fresh", "z", "z", "0000000a", "0000000b", "0000000b")]
    own = by_name(drift(a, folder(tmp_path / "own", rows)))["c"]
    # old is in A's vocabulary, not in its rows.
    assert (own.new, own.unknown, own.keys) == (4 / 8, 3 / 8, (3, 6))
    vocabulary = Vocabulary.load(a / "vocabulary.npz")
    fixed = by_name(drift(a, folder(tmp_path / "fixed", rows, vocabulary=vocabulary)))["c"]
    assert (fixed.new, fixed.unknown, fixed.psi, fixed.keys) == (4 / 8, 3 / 8, own.psi, (3, 4))
    grown = by_name(drift(a, folder(tmp_path / "grown", rows, vocabulary=vocabulary, grow=True)))["c"]
    assert (grown.new, grown.unknown, grown.psi) == (4 / 8, 3 / 8, own.psi)
    # Keys out of vocabulary have no name any more: on A's side they are the same bin as new ones on B's.
    rare = folder(tmp_path / "rare", rows, min_count=2)
    assert by_name(drift(rare, rare))["c"].psi == 0
    assert by_name(drift(rare, rare))["c"].new == 4 / 8


def test_hashed_features_are_compared_by_bucket(tmp_path):
    spec = dataclasses.replace(SPEC, hashed={"c": 1000})
    a = folder(tmp_path / "a", [(1, 1, "p")] * 4 + [(0, 1, "")] * 4, spec=spec)
    b = folder(tmp_path / "b", [(1, 1, "p")] * 2 + [(0, 1, "q")] * 6, spec=spec)
    c = by_name(drift(a, b, top_keys=1))["c"]
    # p 1/2, 1/4; missing 1/2, 0; new 0, 3/4; no other keys.
    shares = [(1 / 2, 1 / 4), (1 / 2, 0.0001), (0.0001, 3 / 4)]
    assert c.psi == pytest.approx(sum((q - p) * math.log(q / p) for p, q in shares), rel=1e-12)
    assert (c.missing, c.new, c.unknown) == ((1 / 2, 0), 3 / 4, 0)
    bucket = Records.open(a).vocabulary().lookup("c", "p")
    assert f"key bucket {bucket}" in [part.name for part in c.moved]
    other = folder(tmp_path / "o", [(1, 1, "p")], spec=dataclasses.replace(SPEC, hashed={"c": 999}))
    with pytest.raises(DataError, match="wanted the features of .*, hashed {'c': 1000}. Received {'c': 999}"):
        drift(a, other)


def test_splits(tmp_path):
    """Of a split nobody counted the missing numbers: they are one bin with 0, on both sides."""
    rows = [(0, "", "p"), (0, 0, "p"), (0, 3, "q"), (1, 3, "r")]
    data = folder(tmp_path / "d", rows, test_fraction=0.5)
    found = drift(data, data, a_split="train", b_split="test")
    n, c = found.features
    assert (found.rows, found.label_rate) == ((2, 2), (0, 0.5))
    assert n.missing == (None, None)
    assert {part.name: part.share for part in n.moved} == {"0, below or missing": (1, 0), "above 0, any": (0, 1)}
    assert (c.new, c.unknown) == (1, 0)
    assert by_name(drift(data, data, b_split="test"))["n"].missing == (1 / 4, None)


def test_bags_count_keys(tmp_path):
    spec = FeatureSpec(SPEC.columns, separator=",", bags={"c": Bag("|", 3)})
    a = folder(tmp_path / "a", [(0, 1, "x|y"), (0, 1, "x")], spec=spec)
    b = folder(tmp_path / "b", [(0, 1, "x|w|x"), (0, 1, "")], spec=spec)
    c = by_name(drift(a, b))["c"]
    assert (c.new, c.missing, c.keys) == (1 / 4, (0, 1 / 4), (2, 3))
    shares = [(2 / 3, 2 / 4), (1 / 3, 0.0001), (0.0001, 1 / 4), (0.0001, 1 / 4)]
    assert c.psi == pytest.approx(sum((q - p) * math.log(q / p) for p, q in shares), rel=1e-12)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Days 0, 1 and 4 of a world whose keys die and whose rate drifts."""
    folder = tmp_path_factory.mktemp("days")
    for day in (0, 1, 4):
        dlrm_tf.synth(folder / f"{day}.tsv", 6000, world=2, day=day, seed=5)
        prepare(folder / f"{day}.tsv", folder / str(day))
    return folder


def test_drift_grows_with_the_days_between(days):
    same, near, far = (drift(days / "0", days / str(day)) for day in (0, 1, 4))
    assert all(feature.psi == 0 and not feature.new for feature in same.features)
    categorical = [feature.name for feature in same.features if feature.kind == "categorical"]
    for figure in ("psi", "new"):
        sums = [sum(getattr(by_name(found)[name], figure) for name in categorical) for found in (near, far)]
        assert 0 < 1.2 * sums[0] < sums[1]
    # Numbers do not drift in this world: their index is that of chance, 31 such with 12 bins or fewer each.
    dense = [feature for feature in far.features if feature.kind == "dense"]
    assert sum(feature.psi for feature in dense) < 2 * sum(feature.noise for feature in dense)


def test_sample_does_not_depend_on_the_pieces():
    label = np.arange(5000, dtype=np.float32)
    whole = Rows(label[:, np.newaxis], np.arange(5000, dtype=np.int32)[:, np.newaxis], label)
    samples = []
    for step in (5000, 7):
        sample = Sample(100)
        for start in range(0, 5000, step):
            sample.add(whole.at(slice(start, start + step)))
        samples.append(sample.rows())
        assert 60 < sample.size <= 200
    assert samples[0].label.tolist() == samples[1].label.tolist() == samples[0].ids[:, 0].tolist()
    # Even over the stream: quarters of a uniform sample of 60 or more have at least 5 each but once in a million.
    assert np.histogram(samples[0].label, 4, (0, 5000))[0].min() >= 5


def test_scores(days, tmp_path):
    """The model's own probabilities, with B's keys translated to A's ids."""
    records = dlrm_tf.Records.open(days / "0")
    vocabulary = records.vocabulary()
    model = dlrm_tf.DLRM(DLRMConfig(records.sizes, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1)), seed=2)
    model.vocabulary_fingerprint = vocabulary.fingerprint
    model.save_weights(tmp_path / "m.weights.h5")
    found = drift(days / "0", days / "4", weights=tmp_path / "m.weights.h5").score
    expected, label = [], []
    for day in ("0", "4"):
        prepare(days / f"{day}.tsv", tmp_path / day, vocabulary=vocabulary, test_fraction=0)
        ((features, labels),) = dlrm_tf.Records.open(tmp_path / day).dataset("train", 6000)
        expected.append(sigmoid(model(features).numpy()[:, 0].astype(np.float64)))
        label.append(float(labels.numpy().mean()))
    assert found.rows == (6000, 6000)
    assert found.mean == pytest.approx([side.mean() for side in expected], rel=1e-5)  # float32 scores
    assert found.calibration == pytest.approx([side.mean() / rate for side, rate in zip(expected, label)], rel=1e-5)
    assert [part.share[0] for part in found.deciles] == pytest.approx([0.1] * 10, abs=2e-3)
    assert drift(days / "0", days / "0", weights=tmp_path / "m.weights.h5").score.psi == 0
    with pytest.raises(DataError, match="wanted the vocabulary .*m.weights.h5 was trained with"):
        drift(days / "4", days / "0", weights=tmp_path / "m.weights.h5")
    with pytest.raises(UsageError, match="weights must be a .weights.h5, an exported SavedModel or a .tflite file"):
        drift(days / "0", days / "0", weights="localhost:1")


def test_refused(tmp_path, days):
    a = folder(tmp_path / "a", [(0, 1, "x")])
    with pytest.raises(DataError, match=r"wanted the features of .*, dense_names \('I1', .* Received \('n',\)"):
        drift(days / "0", a)
    with pytest.raises(DataError, match="wanted rows to compare. Received none"):
        drift(a, a, b_split="test")
    with pytest.raises(DataError, match="wanted rows to compare. Received none"):
        drift(a, a, a_split="test")
    for arguments in ({"bins": 0}, {"top_keys": 0}, {"sample_rows": 0}, {"a_split": "validation"}, {"b_split": "x"}):
        with pytest.raises(UsageError, match=f"{next(iter(arguments))} must be"):
            drift(a, a, **arguments)
    manifest = json.loads((a / "manifest.json").read_text())
    for damage in ({}, {"n": "many"}, {"n": 10**30}):
        (a / "manifest.json").write_text(json.dumps({**manifest, "counts": {**manifest["counts"], "missing": damage}}))
        with pytest.raises(DataError, match="damaged counts in manifest.json"):
            drift(a, a)
    # More missing numbers than there are zeros: no count falls below 0.
    (a / "manifest.json").write_text(json.dumps({**manifest, "counts": {**manifest["counts"], "missing": {"n": 9, "c": 0}}}))
    assert drift(a, a).features[0].missing == (0, 0)


def test_ids_that_no_vocabulary_has_are_unknown(tmp_path):
    a = folder(tmp_path / "a", [(0, 1, "x"), (0, 1, "y"), (0, 1, "y")])
    shard = a / "train" / "00000.bin"
    rows = np.fromfile(shard, "<i4").reshape(3, 3)
    rows[:2, 2] = 2**31 - 1, -7
    rows.tofile(shard)
    assert by_name(drift(a, a))["c"].unknown == 2 / 3


def test_command_line(tmp_path, capsys):
    a = folder(tmp_path / "a", [(0, 1, "x"), (1, 2, "y")])
    b = folder(tmp_path / "b", [(0, 1, "x"), (1, 2, "z")])
    call = ["drift", str(a), str(b), "--quiet"]
    assert main([*call, "--max-psi", "100", "--max-new-share", "0.5", "--json", str(tmp_path / "d.json")]) == 0
    out = capsys.readouterr().out
    assert f"A {a}: 2 rows, 50.00% positive" in out
    assert "key y 50.00% -> 0.00%" in next(line for line in out.splitlines() if line.startswith("  c: "))
    found = json.loads((tmp_path / "d.json").read_text())
    assert [feature["name"] for feature in found["features"]] == ["n", "c"]
    assert found["features"][1]["new"] == 0.5
    assert main([*call, "--max-psi", "0.25", "--max-new-share", "0.4"]) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("too much drift: c PSI 8.5")
    for flag, value in (("--max-psi", "nan"), ("--max-psi", "-1"), ("--page", "p.pdf"), ("--top", "0")):
        assert main([*call, flag, value]) == 2
    assert main(["drift", str(a), str(tmp_path / "none")]) == 1
