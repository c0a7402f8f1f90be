"""Hashed features and shared tables: feature spec, vocabulary and its file, and prepare against the rules in plain Python."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import tree

import dlrm_tf
from dlrm_tf import prepare
from dlrm_tf.cli.main import main
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.describe import describe_records
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.id_spaces import IdSpaces
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
COLUMNS = (
    *(("label", "label"), ("n", "int"), ("shown", "categorical"), ("plain", "categorical"), ("bought", "categorical")),
    *(("h1", "categorical"), ("h2", "categorical"), ("u1", "categorical"), ("u2", "categorical")),
)
SPEC = FeatureSpec(
    COLUMNS,
    bags={"bought": Bag("|", 2), "h2": Bag(",", 3)},
    hashed={"h1": 50, "h2": 50, "u1": 40, "u2": 40},
    shared={"item": ["bought", "shown"], "word": ["h1", "h2"]},
    unified={"rare": ["u1", "u2"]},
)
KEYS = ["", "a", "b", "c", "0a0b0c0d", "deadbeef", "00000001", "long key of more than sixteen bytes", "ü"]


def log(rows, seed=0):
    """Lines of `SPEC`, one of them bad, and their cells."""
    generator = np.random.default_rng(seed)

    def bag(separator, most):
        return separator.join(generator.choice(KEYS[1:], generator.integers(1, most + 2)))

    cells = [[generator.choice(KEYS) for _ in range(7)] for _ in range(rows)]
    for row in cells:
        row[2], row[4] = bag("|", 2), bag(",", 3)
    lines = ["\t".join([str(i % 2), str(i), *row]) for i, row in enumerate(cells)]
    lines.insert(rows // 2, "a bad line")
    return "\n".join(lines) + "\n", cells


def bucket(key, buckets):
    return int(tf.strings.to_hash_bucket_fast(key, buckets))


def reference(cells, items=(), plain=()):
    """Ids by the rules, one key after another: `(rows of ids, keys of item, keys of plain)`."""
    items, plain = {key: i for i, key in enumerate(items)}, {key: i for i, key in enumerate(plain)}
    rows = []
    for shown, one, bought, h1, h2, u1, u2 in cells:
        ids = [items.setdefault(shown, len(items)), plain.setdefault(one, len(plain))]
        for keys, most, find in (
            (bought.split("|"), 2, lambda key: items.setdefault(key, len(items))),
            ([h1], 1, lambda key: bucket(key, 50)),
            (h2.split(","), 3, lambda key: bucket(key, 50)),
        ):
            found = [find(key) for key in keys[:most]]
            ids += found + [-1] * (most - len(found))
        rows.append([*ids, bucket("u1=" + u1, 40), bucket("u2=" + u2, 40)])
    return rows, list(items), list(plain)


def ids_of(records):
    return np.concatenate([records.numpy(split)[1] for split in ("train", "test")]).tolist()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spaces")
    text, cells = log(300)
    (folder / "log.txt").write_text(text)
    return prepare(folder / "log.txt", folder / "data", spec=SPEC, shard_lines=64), cells, folder / "log.txt"


def test_prepare_follows_the_rules(prepared):
    records, cells, path = prepared
    rows, items, plain = reference(cells)
    assert ids_of(records) == rows
    vocabulary = records.vocabulary()
    assert vocabulary.keys("shown") == vocabulary.keys("bought") == items and vocabulary.keys("plain") == plain
    assert records.sizes == (len(items), len(plain), len(items), 50, 50, 40, 40)
    assert records.num_ids == len(items) + len(plain) + 50 + 40
    assert records.manifest["counts"]["out_of_vocabulary"] == dict.fromkeys(SPEC.categorical_names, 0)
    config = dlrm_tf.DLRMConfig(**records.config_fields(), bottom_mlp=(4,), embedding_dim=4)
    assert config.feature_tables == (0, 1, 0, 2, 2, 3, 3) and config.num_ids == records.num_ids
    assert f"{records.num_ids:,} categories in 7 features" in "\n".join(describe_records(records.folder))


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), shard=st.integers(1, 9), threads=st.integers(1, 3))
def test_any_log_in_any_shards(tmp_path_factory, seed, rows, shard, threads):
    folder = tmp_path_factory.mktemp("any")
    text, cells = log(rows, seed)
    (folder / "log.txt").write_text(text)
    records = prepare(folder / "log.txt", folder / "data", spec=SPEC, shard_lines=shard, threads=threads, test_fraction=0)
    assert ids_of(records) == reference(cells)[0]


def test_the_vocabulary_gives_the_same_ids_everywhere(prepared):
    records, cells, _ = prepared
    vocabulary = Vocabulary.load(records.folder + "/vocabulary.npz")
    assert vocabulary.fingerprint == records.vocabulary().fingerprint
    assert vocabulary.spaces.to_dict() == SPEC.id_spaces.to_dict()
    # A spec that says nothing about hashing is enough to score: the vocabulary knows.
    spec = dataclasses.replace(SPEC, hashed={}, shared={}, unified={})
    encoder = Encoder(spec, vocabulary)
    columns = {"n": list(range(300)), **dict(zip(SPEC.categorical_names, zip(*cells)))}
    wanted = ids_of(records)
    assert encoder.columns(columns)[1].tolist() == wanted
    assert encoder.lines(["\t".join(["3", *row]) for row in cells[:40]])[1].tolist() == wanted[:40]
    unknown = {name: ["never seen"] for name in SPEC.categorical_names}
    ids = encoder.columns({"n": [1], **unknown})[1][0]
    items = vocabulary.sizes[0]
    assert ids.tolist()[:4] == [items, vocabulary.sizes[1], items, -1]
    assert ids[4] == bucket("never seen", 50) and ids[8] == bucket("u1=never seen", 40)
    with pytest.raises(DataError, match="wanted a feature with keys. Received 'h1', which is hashed"):
        vocabulary.keys("h1")


def test_growing_with_another_log(prepared, tmp_path):
    records, _, _ = prepared
    text, _ = log(120, seed=3)
    (tmp_path / "log.txt").write_text(text.replace("\tc\t", "\tnew\t"))
    old = records.vocabulary()
    plain_spec = dataclasses.replace(SPEC, hashed={}, shared={}, unified={})
    # The old vocabulary's hashed features and tables are taken over.
    grown = prepare(tmp_path / "log.txt", tmp_path / "data", spec=plain_spec, vocabulary=old, grow=True)
    cells = [line.split("\t")[2:] for line in (tmp_path / "log.txt").read_text().splitlines() if line.count("\t") == 8]
    rows, items, plain = reference(cells, old.keys("shown"), old.keys("plain"))
    assert ids_of(grown) == rows and len(items) > old.sizes[0]
    new = grown.vocabulary()
    assert new.keys("bought") == items and new.first(old.sizes).fingerprint == old.fingerprint
    assert grown.spec == SPEC
    fixed = prepare(tmp_path / "log.txt", tmp_path / "fixed", spec=SPEC, vocabulary=old)
    assert fixed.sizes == records.sizes and fixed.manifest["counts"]["out_of_vocabulary"]["shown"] > 0
    other = dataclasses.replace(SPEC, hashed={**SPEC.hashed, "u1": 41, "u2": 41})
    with pytest.raises(DataError, match="wanted the vocabulary's hashed features and tables, .* can't grow or change. Received"):
        prepare(tmp_path / "log.txt", tmp_path / "other", spec=other, vocabulary=old, grow=True)


def test_admission_counts_shared_keys_together_and_leaves_hashed_features_alone(tmp_path):
    spec = FeatureSpec.of([], ["a", "b", "h"])
    spec = dataclasses.replace(
        spec, columns=(("y", "label"), ("n", "int"), *spec.columns[1:]), hashed={"h": 5}, shared={"t": ["a", "b"]}
    )
    # x: once in a and once in b; y: only once; z: three times.
    (tmp_path / "log.txt").write_text("1\t1\tx\tz\tk\n0\t1\ty\tx\tk\n1\t2\tz\tz\tl\n")
    records = prepare(tmp_path / "log.txt", tmp_path / "two", spec=spec, min_count=2, test_fraction=0)
    assert records.vocabulary().keys("a") == records.vocabulary().keys("b") == ["x", "z"]
    k, other = bucket("k", 5), bucket("l", 5)
    assert ids_of(records) == [[0, 1, k], [2, 0, k], [1, 1, other]] and records.sizes == (2, 2, 5)
    assert records.manifest["counts"]["out_of_vocabulary"] == {"a": 1, "b": 0, "h": 0}
    most = prepare(tmp_path / "log.txt", tmp_path / "most", spec=spec, max_ids=1, last_seen="2026-01-02", test_fraction=0)
    assert most.vocabulary().keys("a") == ["z"] and most.sizes == (1, 1, 5)
    days = most.vocabulary().last_seen("b")
    assert days.tolist() == [20455] and most.vocabulary().last_seen("h").size == 0
    with pytest.raises(UsageError, match="max_ids must be of features with a vocabulary. Received 'h', which is hashed"):
        prepare(tmp_path / "log.txt", tmp_path / "no", spec=spec, max_ids={"h": 3})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hashed": {"n": 5}}, "hashed: wanted categorical columns, .*Received 'n'"),
        ({"hashed": {"h1": 0}}, r"hashed\['h1'\] must be a whole number from 1 to 2,147,483,646. Received 0"),
        ({"hashed": {"h1": 1.5}}, "Received 1.5"),
        ({"hashed": {"h1": True}}, "Received True"),
        ({"hashed": [1]}, "hashed must be an object"),
        ({"shared": {"t": ["h1"]}}, r"shared\['t'\]: wanted two or more different features. Received \['h1'\]"),
        ({"shared": {"t": ["h1", "h1"]}}, "two or more different features"),
        ({"shared": {"t": [["h1"], "h2"]}}, r"Received \['h1'\]"),
        ({"shared": {"t": 5}}, r"shared\['t'\]: wanted categorical columns"),
        ({"shared": {"t": ["h1", "h2"], "s": ["h2", "u1"]}}, "in one table of shared and unified. Received 'h2' twice"),
        ({"shared": {"t": ["h1", "h2"]}, "hashed": {"h1": 5}}, "the same number or not at all. Received h1 5, h2 not"),
        ({"unified": {"t": ["h1", "h2"]}}, "hashed into the same number of buckets. Received h1 not, h2 not"),
        ({"unified": {"t": ["u1", "u2"]}, "hashed": {"u1": 5, "u2": 6}}, "Received u1 5, u2 6"),
    ],
)
def test_what_a_spec_refuses(fields, message):
    with pytest.raises(DataError, match="^feature spec: .*" + message):
        FeatureSpec(COLUMNS, **fields)


def test_a_spec_as_json(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(SPEC.to_dict()))
    assert FeatureSpec.load(path) == SPEC and hash(SPEC) == hash(FeatureSpec.load(path))
    assert SPEC.to_dict()["shared"] == {"item": ["shown", "bought"], "word": ["h1", "h2"]}  # in the order of the columns
    assert set(FeatureSpec(COLUMNS).to_dict()) == {"columns", "separator", "header"}


def test_damaged_vocabularies(prepared, tmp_path):
    records, _, _ = prepared
    path = tmp_path / "v.npz"
    with np.load(records.folder + "/vocabulary.npz") as arrays:
        members = dict(arrays)
    header = json.loads(members["header"].tobytes())
    for change, message in [
        ({"hashed": {}}, "damaged vocabulary file"),
        ({"hashed": {**header["hashed"], "h1": 51, "h2": 51}}, "fingerprint does not fit"),
        ({"shared": {}}, "keys of 5 features, wanted 7"),
        ({"unified": {}}, "fingerprint does not fit"),
        ({"hashed": 5}, "hashed must be an object"),
        ({"format": 1}, "Received .*hashed"),
    ]:
        changed = np.frombuffer(json.dumps({**header, **change}).encode(), np.uint8)
        np.savez(path, **{**members, "header": changed})
        with pytest.raises(DataError, match=message):
            Vocabulary.load(path)


def test_a_vocabulary_of_kept_buckets(prepared, tmp_path):
    """What a pruned device file carries."""
    vocabulary = prepared[0].vocabulary()
    masks = [np.arange(size) % 3 == 0 for size in vocabulary.sizes]
    part = vocabulary.keep(masks)
    part.save(tmp_path / "v.npz")
    loaded = Vocabulary.load(tmp_path / "v.npz")
    assert loaded.sizes == part.sizes == tuple(int(mask.sum()) for mask in masks)
    for name, mask in zip(vocabulary.names, masks):
        whole, found = vocabulary.lookup(name, KEYS), loaded.lookup(name, KEYS)
        np.testing.assert_array_equal(found, [i // 3 if i < mask.size and mask[i] else mask.sum() for i in whole])
    with np.load(tmp_path / "v.npz") as arrays:
        members = dict(arrays)
    members["hex_keys"][-3:] = members["hex_keys"][-3:][::-1]
    np.savez(tmp_path / "v.npz", **members)
    with pytest.raises(DataError, match="the buckets of 'u2'"):
        Vocabulary.load(tmp_path / "v.npz")


def test_tables_are_numbered_by_first_appearance():
    spaces = IdSpaces(("a", "b", "c", "d"), {"b": 9, "d": 9}, {"x": ("c", "a")}, {"y": ("d", "b")})
    assert spaces.tables == (0, 1, 0, 1) and spaces.key_sets == (0, 1, 0, 2) and spaces.owners == ("a", "b", "d")
    assert spaces.salt("b") == b"b=" and spaces.salt("a") == b""
    assert IdSpaces(("a", "b")).tables == (0, 1) and IdSpaces(("a",)).to_dict() == {}


def test_inspect(prepared, capsys):
    records, _, _ = prepared
    assert main(["inspect", records.folder]) == 0
    shown = capsys.readouterr().out
    assert "hashed: h1 into 50, h2 into 50, u1 into 40, u2 into 40" in shown
    assert "shared table item: shown, bought" in shown and "unified table rare: u1, u2" in shown
    assert main(["inspect", records.folder + "/vocabulary.npz"]) == 0
    shown = capsys.readouterr().out
    assert "shared: {'item': ['shown', 'bought'], 'word': ['h1', 'h2']}" in shown and "last_seen" not in shown


def test_the_command_line(prepared, tmp_path, capsys):
    records, _, log_path = prepared
    bare = dataclasses.replace(SPEC, hashed={}, shared={}, unified={})
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(bare.to_dict()))
    options = ["--hash", "h1=50", "--hash", "h2=50", "--hash", "u1=40", "--hash", "u2=40", "--share", "item=shown,bought"]
    options += ["--share", "word=h1,h2", "--unify", "rare=u1,u2"]
    command = ["prepare", str(log_path), "-o", str(tmp_path / "out"), "--spec", str(spec)]
    assert main([*command, *options]) == 0
    made = Records.open(tmp_path / "out")
    assert made.spec == SPEC and ids_of(made) == ids_of(records)
    assert tree(tmp_path / "out")["vocabulary.npz"] == tree(records.folder)["vocabulary.npz"]
    capsys.readouterr()
    assert main([*command, "--hash", "h1"]) == 2
    assert "--hash must be as C3=1000000. Received 'h1'" in capsys.readouterr().err
    assert main([*command, "--unify", "t=h1,h2"]) == 2
    assert "hashed into the same number of buckets" in capsys.readouterr().err
