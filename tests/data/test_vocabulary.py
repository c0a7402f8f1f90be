"""Vocabulary: ids by first appearance, lookups, the file, and what is refused."""

import hashlib
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.key_column import as_column
from dlrm_tf.data.key_file import write_keys
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError

key = st.one_of(
    st.just(""),
    st.integers(0, 30).map("{:08x}".format),
    st.integers(2**32 - 5, 2**32 - 1).map("{:08X}".format),
    st.text(max_size=9),
    st.sampled_from(["a\0", "a", "\0", "0000000", "00000000", "\udcff"]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(key, max_size=25), max_size=6), st.integers(0, 6))
def test_ids_are_the_order_of_first_appearance(columns, journal_at):
    feature, expected = FeatureKeys(), {}
    copied = None
    for number, column in enumerate(columns):
        if number == journal_at:
            feature.take_new()
            copied = feature.copy()
        known = [expected.get(key, -1) for key in column]
        assert feature.find(as_column(column)).tolist() == known
        ids = feature.assign(as_column(column))
        for one in column:
            expected.setdefault(one, len(expected))
        assert ids.tolist() == [expected[one] for one in column]
    assert feature.size == len(expected)
    vocabulary = Vocabulary([("C", feature)])
    assert vocabulary.keys("C") == list(expected)
    if copied is not None:  # what take_new gives brings an older copy up to date
        copied.append(*feature.take_new())
        assert Vocabulary([("C", copied)]).fingerprint == vocabulary.fingerprint


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(key, unique=True, max_size=20), min_size=1, max_size=3))
def test_file_gives_back_the_same(tmp_path_factory, columns):
    vocabulary = Vocabulary.from_keys({f"C{i}": column for i, column in enumerate(columns)})
    path = tmp_path_factory.mktemp("vocabulary") / "v.npz"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert (loaded.names, loaded.sizes, loaded.fingerprint) == (vocabulary.names, vocabulary.sizes, vocabulary.fingerprint)
    for name, column in zip(loaded.names, columns):
        assert loaded.keys(name) == column
        assert loaded.lookup(name, column).tolist() == list(range(len(column)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(key, st.integers(-1, 40_000), max_size=20), min_size=1, max_size=3), st.data())
def test_days_are_kept_with_their_keys(tmp_path_factory, columns, data):
    vocabulary = with_days({f"C{i}": column for i, column in enumerate(columns)})
    path = tmp_path_factory.mktemp("vocabulary") / "v.npz"
    vocabulary.save(path)
    loaded = Vocabulary.load(path)
    assert loaded.fingerprint == vocabulary.fingerprint == Vocabulary.from_keys(dict(zip(vocabulary.names, columns))).fingerprint
    sizes = [data.draw(st.integers(0, len(column))) for column in columns]
    for name, column, size in zip(loaded.names, columns, sizes):
        assert loaded.last_seen(name).dtype == np.int32
        assert loaded.last_seen(name).tolist() == list(column.values())
        assert loaded.first(sizes).last_seen(name).tolist() == list(column.values())[:size]
        kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(column), max_size=len(column))), bool)
        expected = [day for day, keep in zip(column.values(), kept) if keep]
        assert loaded.feature(name).copy().keep(kept).last_seen.tolist() == expected
    # Format 2 exactly when a day is known, and never where the days are left out.
    plain, without = path.with_name("plain.npz"), path.with_name("without.npz")
    Vocabulary.from_keys(dict(zip(vocabulary.names, columns))).save(plain)
    loaded.save(without, last_seen=False)
    assert without.read_bytes() == plain.read_bytes()
    assert (path.read_bytes() == plain.read_bytes()) == all(day == -1 for column in columns for day in column.values())


def with_days(columns):
    """A vocabulary of `{feature: {key: day}}`."""
    vocabulary = Vocabulary.from_keys({name: list(column) for name, column in columns.items()})
    for name, column in columns.items():
        for i, day in enumerate(column.values()):
            vocabulary.feature(name).see(np.arange(len(column)) == i, day)
    return vocabulary


def test_a_key_keeps_its_latest_day_and_new_ones_have_none():
    feature = Vocabulary.from_keys({"a": ["x", "00000001", ""]}).feature("a")
    assert feature.last_seen.tolist() == [-1, -1, -1]
    feature.see(np.array([True, False, True]), 20_000)
    feature.see(np.array([True, True, False]), 19_999)
    feature.assign(as_column(["y", "x"]))
    assert feature.last_seen.tolist() == [20_000, 19_999, 20_000, -1]


def test_files_without_options_are_as_they_were(tmp_path):
    """Arrays of the file, in order; the digest is that of a file written before there were options."""
    path = tmp_path / "v.npz"
    Vocabulary.from_keys({"a": ["00000001", "x", "00000002"], "b": ["", "y"]}).save(path)
    digest = hashlib.sha256()
    with np.load(path) as arrays:
        for name in arrays.files:
            digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode() + arrays[name].tobytes())
    assert digest.hexdigest() == "e20387708312023c9cf050640d606d045df6d3cf4463eb55290d976a22d3cb12"


def test_lookup():
    vocabulary = Vocabulary.from_keys({"a": ["0000000a", "", "x"], "b": []})
    assert vocabulary.sizes == (3, 0)
    ids = vocabulary.lookup("a", [["", "0000000a"], ["0000000A", "x"]])
    assert ids.dtype == np.int32
    assert ids.tolist() == [[1, 0], [3, 2]]
    assert vocabulary.lookup("a", np.array([b"x", b"y"])).tolist() == [2, 3]
    assert vocabulary.lookup("b", ["x"]).tolist() == [0]
    with pytest.raises(DataError, match="wanted one of the features a, b. Received 'c'"):
        vocabulary.lookup("c", ["x"])


def test_numeric_keys_and_others_for_a_lookup_in_a_graph():
    feature = Vocabulary.from_keys({"a": ["ffffffff", "", "00000001", "x"]}).feature("a")
    values, ids = feature.numeric()
    assert (values.dtype, values.tolist(), ids.tolist()) == (np.uint32, [0xFFFFFFFF, 1], [0, 2])
    assert feature.others() == [(b"", 1), (b"x", 3)]


def test_keep():
    feature = Vocabulary.from_keys({"a": ["00000005", "", "00000001", "x", "00000003"]}).feature("a")
    kept = feature.keep(np.array([False, True, True, True, False]))
    assert Vocabulary([("a", kept)]).keys("a") == ["", "00000001", "x"]


@settings(max_examples=100, deadline=None)
@given(st.lists(key, unique=True, max_size=20), st.lists(key, unique=True, max_size=20))
def test_ids_in_another_vocabulary(mine, others):
    feature = Vocabulary.from_keys({"a": mine}).feature("a")
    other = Vocabulary.from_keys({"a": others}).feature("a")
    assert feature.ids_in(other).tolist() == [others.index(key) if key in others else -1 for key in mine]
    assert [feature.key(i).decode("utf-8", "surrogateescape") for i in range(len(mine))] == mine
    assert feature.missing_id == (mine.index("") if "" in mine else -1)


def test_fingerprint_tells_every_difference():
    def fingerprint(**keys):
        return Vocabulary.from_keys(keys).fingerprint

    base = fingerprint(a=["00000001", "00000002"], b=["x"])
    assert base == fingerprint(a=["00000001", "00000002"], b=["x"])
    assert len({base, fingerprint(a=["00000002", "00000001"], b=["x"]), fingerprint(a=["00000001"], b=["00000002", "x"])}) == 3
    assert fingerprint(a=["00000001", "x"]) != fingerprint(a=["x", "00000001"]) != fingerprint(b=["x", "00000001"])
    # Stable over versions and machines: the definition, written out.
    by_hand = hashlib.sha256(json.dumps(["a", 3, [["78", 1]]]).encode() + bytes([1, 0, 0, 0, 2, 0, 0, 0])).hexdigest()
    assert fingerprint(a=["00000001", "x", "00000002"]) == by_hand


def test_keys_twice_are_refused():
    with pytest.raises(DataError, match="feature 'a': wanted different keys. Received 1 repeated"):
        Vocabulary.from_keys({"a": ["x", "", "x"]})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "v.npz"
    with_days({"a": {"00000001": 3, "00000002": -1, "x": 5}, "b": {"": 0, "0000000f": 9}}).save(path)
    return path


def rewritten(path, name, change):
    """The file with the array `name` changed."""
    with np.load(path) as arrays:
        content = {key: arrays[key] for key in arrays.files}
    content[name] = change(content[name])
    np.savez(path, **content)


def changed_header(**values):
    """A change of the header's array that sets these values."""
    return lambda a: np.frombuffer(json.dumps({**json.loads(a.tobytes()), **values}).encode(), np.uint8)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hex_keys", lambda a: a[::-1]),
        ("hex_keys", lambda a: a[:-1]),
        ("hex_keys", lambda a: a.astype("<i8")),
        ("counts", lambda a: a - 1),
        ("counts", lambda a: a.astype("<i8") * 2**40),
        ("counts", lambda a: a[:1]),
        ("other_ids", lambda a: a + 100),
        ("other_ids", lambda a: a * 0),
        ("other_lengths", lambda a: a + 1),
        ("other_lengths", lambda a: -a),
        ("other_keys", lambda a: a[:0]),
        ("last_seen", lambda a: a[1:]),
        ("last_seen", lambda a: a - 1),
        ("last_seen", lambda a: a.astype("<i8")),
        ("last_seen", lambda a: a.reshape(1, -1)),
        ("header", lambda a: a[:-1]),
        ("header", lambda a: np.frombuffer(b"[]", np.uint8)),
        ("header", lambda a: np.frombuffer(b'{"format": 9}', np.uint8)),
        ("header", lambda a: np.array([{}], dtype=object)),
        ("header", changed_header(last_seen=1)),
        ("header", changed_header(last_seen=False)),
        ("header", changed_header(format=1)),
        ("header", changed_header(format=3)),
        ("header", changed_header(something=1)),
    ],
)
def test_damaged_files_are_refused(saved, name, change):
    rewritten(saved, name, change)
    with pytest.raises(DataError, match=str(saved)):
        Vocabulary.load(saved)


@pytest.mark.parametrize("ids", [(0, 1), (1, 0)])
def test_a_key_that_stands_twice_is_refused_though_the_fingerprint_fits(tmp_path, ids):
    path = tmp_path / "v.npz"
    header = {"format": 1, "fingerprint": Vocabulary.from_keys({"a": ["x"]}).fingerprint, "names": ["a"]}
    write_keys(path, header, [(np.empty(0, np.uint32), [(b"x", i) for i in ids])])
    with pytest.raises(DataError, match="a key of 'a' stands twice"):
        Vocabulary.load(path)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip", b"PK\x03\x04" + bytes(100)])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "v.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a vocabulary file"):
        Vocabulary.load(path)


def test_every_cut_of_the_file_is_refused(saved):
    content = saved.read_bytes()
    for length in range(0, len(content), 41):
        saved.write_bytes(content[:length])
        with pytest.raises(DataError):
            Vocabulary.load(saved)


def test_a_stated_length_takes_no_memory(saved):
    """An array header that promises a terabyte is refused before an array is made for it."""
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(huge, {"descr": "<u4", "fortran_order": False, "shape": (1 << 38,)})
    with zipfile.ZipFile(saved) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts["hex_keys.npy"] = huge.getvalue()
    with zipfile.ZipFile(saved, "w") as new:
        for name, content in parts.items():
            new.writestr(name, content)
    with pytest.raises(DataError, match="has not the length it states"):
        Vocabulary.load(saved)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        Vocabulary.load(tmp_path / "none.npz")


def test_threads_that_look_up_first_at_the_same_time_all_find_the_key():
    from concurrent.futures import ThreadPoolExecutor

    keys = [f"{i:08x}" for i in range(200_000)]
    for _ in range(3):
        vocabulary = Vocabulary.from_keys({"C1": keys})
        fresh = Vocabulary([("C1", vocabulary.feature("C1").copy())])
        with ThreadPoolExecutor(4) as pool:
            assert [int(ids[0]) for ids in pool.map(lambda _, v=fresh: v.lookup("C1", ["00000005"]), range(4))] == [5] * 4
