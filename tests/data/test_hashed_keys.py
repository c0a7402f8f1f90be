"""Fingerprints against TensorFlow's, and the ids of hashed features."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.fingerprint import fingerprints, hex_fingerprints
from dlrm_tf.data.hashed_keys import HashedKeys
from dlrm_tf.data.id_spaces import IdSpaces
from dlrm_tf.data.key_column import as_column, by_row
from dlrm_tf.data.key_table import KeyTable
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
KEYS = st.one_of(st.sampled_from(["", "00000000", "deadbeef", "FFFFFFFF", "ü", "5"]), st.text(max_size=12))


def tf_fingerprints(texts):
    return tf.fingerprint(tf.constant(texts, tf.string)).numpy().view("<u8")[:, 0]


def test_every_length():
    """All formulas, and all numbers of rounds of 64 bytes up to 20; bytes from 0 to 255."""
    generator = np.random.default_rng(0)
    texts = [generator.bytes(n) for n in [*range(400), *range(1, 1300, 61), *range(70)]]
    generator.shuffle(texts)
    found = fingerprints(b"".join(texts), np.array([len(text) for text in texts]))
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, tf_fingerprints(texts))


@settings(max_examples=50)
@given(texts=st.lists(st.binary(max_size=140), min_size=1, max_size=30))
def test_any_texts(texts):
    found = fingerprints(b"".join(texts), np.array([len(text) for text in texts]))
    np.testing.assert_array_equal(found, tf_fingerprints(texts))


def test_no_texts():
    assert fingerprints(b"", np.zeros(0, np.int64)).shape == hex_fingerprints(np.zeros(0, np.uint32), b"C1=").shape == (0,)


@pytest.mark.parametrize("prefix", [b"", b"C1=", b"seven c", b"eight ch", b"a longer name="])
def test_keys_of_eight_hex_digits(prefix):
    values = np.random.default_rng(1).integers(0, 2**32, 500, np.uint32)
    values[:2] = 0, 2**32 - 1
    wanted = tf_fingerprints([prefix + b"%08x" % value for value in values])
    np.testing.assert_array_equal(hex_fingerprints(values, prefix), wanted)


def buckets_of(keys, buckets, salt=""):
    return tf.strings.to_hash_bucket_fast([salt + key for key in keys], buckets).numpy()


@settings(max_examples=50)
@given(keys=st.lists(KEYS, min_size=1, max_size=30), buckets=st.sampled_from([1, 7, 1 << 20, 2**31 - 2]), salted=st.booleans())
def test_ids_are_tensorflows_buckets(keys, buckets, salted):
    feature = HashedKeys(buckets, b"C1=" if salted else b"")
    wanted = buckets_of(keys, buckets, "C1=" if salted else "")
    for learn in (False, True):
        found = feature.ids(as_column(keys), learn=learn)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, wanted)
    assert feature.size == buckets and feature.take_new()[0].size == 0 and feature.take_new()[1] == []


def test_keras_hashing_gives_the_same_ids():
    keys = [f"key {i}" for i in range(300)] + ["", "68fd1e64"]
    np.testing.assert_array_equal(HashedKeys(97).ids(as_column(keys)), tf.keras.layers.Hashing(97)(tf.constant(keys)))


def test_unified_features_collide_independently():
    """Of the pairs of keys that share one feature's bucket, one in 50 shares that of another; without salts all would."""
    column = as_column([f"{i:08x}" for i in range(3000)])
    mine, other = (HashedKeys(50, salt).find(column) for salt in (b"C1=", b"C2="))
    pairs = mine[:, None] == mine
    np.fill_diagonal(pairs, False)
    rows, columns = np.nonzero(pairs)
    # 178,000 pairs of about 9,000,000 / 50: the share's standard deviation is some 0.0005.
    assert np.mean(other[rows] == other[columns]) == pytest.approx(1 / 50, abs=0.003)
    counts = np.bincount(mine, minlength=50)
    assert ((counts - 60) ** 2 / 60).sum() < 90  # chi-squared of 49 degrees of freedom: above 90 once in 3,000 times


def test_a_part_of_the_buckets():
    keys = [f"k{i}" for i in range(200)]
    kept = np.isin(np.arange(20), [3, 4, 11, 19])
    part = HashedKeys(20).keep(kept)
    wanted = [{3: 0, 4: 1, 11: 2, 19: 3}.get(int(bucket), 4) for bucket in buckets_of(keys, 20)]
    assert part.size == 4 and len(set(wanted)) == 5
    assert part.ids(as_column(keys)).tolist() == wanted
    again = part.keep(np.array([True, False, False, True]))
    assert again.ids(as_column(keys)).tolist() == [{0: 0, 3: 1}.get(i, 2) for i in wanted]
    assert part.keep(np.ones(4, bool)) is part


@settings(max_examples=30)
@given(rows=st.lists(st.tuples(KEYS, KEYS, KEYS, KEYS), min_size=1, max_size=12))
def test_single_rows(rows):
    """KeyTable, which looks up all features together, beside `lookup`, which does one after the other."""
    spaces = IdSpaces(tuple("abcd"), hashed={"a": 13, "c": 100, "d": 100}, unified={"t": ("c", "d")})
    listed = FeatureKeys()
    listed.assign(as_column(["", "deadbeef", "ü", "x"]))
    part = HashedKeys(13).keep(np.arange(13) % 2 == 0)
    features = [("a", part), ("b", listed), ("c", HashedKeys(100, b"c=")), ("d", HashedKeys(100, b"d="))]
    vocabulary = Vocabulary(features, spaces)
    wanted = np.stack([vocabulary.lookup(name, [row[f] for row in rows]) for f, name in enumerate("abcd")], axis=1)
    np.testing.assert_array_equal(KeyTable(vocabulary).ids([key for row in rows for key in row]), wanted)


@given(a=st.lists(KEYS, max_size=8), b=st.lists(st.lists(KEYS, min_size=1, max_size=3), max_size=8))
def test_keys_of_columns_row_by_row(a, b):
    """A column of one key a row, and one of bags, with `rows` that both have."""
    rows = min(len(a), len(b))
    wanted = [key for i in range(rows) for key in (a[i], *b[i])]
    columns = [as_column(a[:rows]), as_column([key for bag in b[:rows] for key in bag])]
    found = by_row(columns, [np.arange(rows), np.repeat(np.arange(rows), [len(bag) for bag in b[:rows]])])
    expected = as_column(wanted)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.empty, expected.empty)
    assert list(found.odd) == list(expected.odd)
