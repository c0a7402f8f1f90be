"""Which keys get an id (min_count, max_ids), and on which day each was last seen."""

import datetime
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_tf import FeatureSpec, Vocabulary, prepare
from dlrm_tf.cli.main import main
from dlrm_tf.data.admit import admit
from dlrm_tf.data.days import day_number, describe_days
from dlrm_tf.errors import UsageError

SPEC = FeatureSpec((("y", "label"), ("n", "int"), ("c", "categorical")), separator=",")


def log_of(folder: pathlib.Path, keys: str) -> pathlib.Path:
    """A log of one key a row."""
    path = folder / "log.csv"
    path.write_text("".join(f"0,1,{key}\n" for key in keys.split()))
    return path


@given(st.lists(st.integers(0, 6)), st.integers(1, 4), st.one_of(st.none(), st.integers(1, 12)), st.integers(0, 8))
def test_admit_is_what_sorting_gives(counts, min_count, max_ids, always_kept):
    always = set(range(min(always_kept, len(counts))))
    rivals = [i for i, count in enumerate(counts) if count >= min_count and i not in always]
    rivals.sort(key=lambda i: (-counts[i], i))
    room = len(rivals) if max_ids is None else max(max_ids - len(always), 0)
    kept = admit(np.array(counts, np.int64), min_count=min_count, max_ids=max_ids, always_kept=len(always))
    assert set(np.flatnonzero(kept).tolist()) == always | set(rivals[:room])


def test_max_ids(tmp_path):
    """`x` occurs 4 times, `y` and `z` 3, `w` 2, in this order of first appearance: w, z, x, y."""
    keys = "w z x y x y x y x z z w"
    log = log_of(tmp_path, keys)
    files = {}
    for number, stay in ((1, "x"), (2, "z x"), (3, "z x y"), (4, "w z x y"), (None, "w z x y")):
        out = tmp_path / str(number)
        records = prepare(log, out, spec=SPEC, max_ids=number, test_fraction=0, shard_lines=5)
        vocabulary = records.vocabulary()
        assert vocabulary.keys("c") == stay.split()
        assert records.numpy("train")[1][:, 0].tolist() == vocabulary.lookup("c", keys.split()).tolist()
        assert records.manifest["counts"]["out_of_vocabulary"]["c"] == sum(key not in stay for key in keys.split())
        files[number] = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert files[4] == files[None]  # a bound that binds nothing changes nothing
    both = prepare(log, tmp_path / "both", spec=SPEC, max_ids={"c": 3}, min_count=4, test_fraction=0)
    assert both.vocabulary().keys("c") == ["x"]


def test_known_keys_count_towards_max_ids(tmp_path):
    log, vocabulary = log_of(tmp_path, "z z z y y x"), Vocabulary.from_keys({"c": ["old", "x"]})
    for number, keys in ((1, "old x"), (2, "old x"), (3, "old x z"), (4, "old x z y")):
        records = prepare(log, tmp_path / str(number), spec=SPEC, vocabulary=vocabulary, grow=True, max_ids=number)
        assert records.vocabulary().keys("c") == keys.split()


def test_expiry_follows_from_the_days(tmp_path):
    """Which keys occurred in the last so many days, and no others; the last log here is an older day's."""
    vocabulary = None
    for day, keys in {"2026-11-22": "a b c", "2026-11-24": "b", "2026-11-25": "c d", "2026-11-23": "b e"}.items():
        grown = {"vocabulary": vocabulary, "grow": vocabulary is not None}
        # Half of the lines are test: a key that stands there alone was seen too.
        records = prepare(log_of(tmp_path, keys), tmp_path / day, spec=SPEC, test_fraction=0.5, last_seen=day, **grown)
        vocabulary = records.vocabulary()
    age = day_number(datetime.date(2026, 11, 25), "today") - vocabulary.last_seen("c")
    assert vocabulary.keys("c") == ["a", "b", "c", "d", "e"]
    assert age.tolist() == [3, 1, 0, 0, 2]
    live = vocabulary.feature("c").keep(age < 2)
    assert Vocabulary([("c", live)]).keys("c") == ["b", "c", "d"]
    assert live.last_seen.tolist() == vocabulary.last_seen("c")[1:4].tolist()


def test_days_beside_other_options(tmp_path):
    given = Vocabulary.from_keys({"c": ["a", "b"]})
    log = log_of(tmp_path, "b new")
    # A fixed vocabulary is updated too, under the same fingerprint, in the new folder alone.
    fixed = prepare(log, tmp_path / "f", spec=SPEC, vocabulary=given, last_seen=datetime.date(1970, 1, 8)).vocabulary()
    assert (fixed.fingerprint, fixed.last_seen("c").tolist()) == (given.fingerprint, [-1, 7])
    assert given.last_seen("c").tolist() == [-1, -1]
    # A log without a day changes no day; a rare key's day leaves with it.
    grown = prepare(log, tmp_path / "g", spec=SPEC, vocabulary=fixed, grow=True).vocabulary()
    assert (grown.keys("c"), grown.last_seen("c").tolist()) == (["a", "b", "new"], [-1, 7, -1])
    options = {"vocabulary": fixed, "grow": True, "min_count": 2, "last_seen": "1970-01-09"}
    rare = prepare(log, tmp_path / "r", spec=SPEC, **options).vocabulary()
    assert (rare.keys("c"), rare.last_seen("c").tolist()) == (["a", "b"], [-1, 8])


@pytest.mark.parametrize("day", ["2026-11-31", "20261125", "2026-W48-3", "1969-12-31", "today", "", 20_000])
def test_what_is_no_day(tmp_path, day):
    with pytest.raises(UsageError, match="last_seen must be a day from 1970-01-01 on, written as 2026-11-25"):
        prepare(log_of(tmp_path, "a"), tmp_path / "out", spec=SPEC, last_seen=day)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_ids": 0}, "max_ids must be at least 1. Received 0"),
        ({"max_ids": {"c": -1}}, "max_ids must be at least 1. Received -1"),
        ({"max_ids": {"n": 5}}, "max_ids must be of the categorical features c. Received 'n'"),
        ({"max_ids": 5, "vocabulary": Vocabulary.from_keys({"c": ["a"]})}, "max_ids must be None with a fixed vocabulary"),
    ],
)
def test_refused(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        prepare(log_of(tmp_path, "a"), tmp_path / "out", spec=SPEC, **arguments)
    assert not (tmp_path / "out").exists()


def test_distribution_of_days():
    days = np.array([4, -1, 0, 2, 3, 1, -1], np.int32)
    quarters = {"oldest": "1970-01-01", "quarter": "1970-01-02", "median": "1970-01-03", "three_quarters": "1970-01-04"}
    assert describe_days(days) == {**quarters, "newest": "1970-01-05", "unknown": 2}
    assert describe_days(days[:0])["median"] == "unknown"


def test_command_line(tmp_path, capsys):
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(json.dumps(SPEC.to_dict()))
    arguments = ["prepare", str(log_of(tmp_path, "a b b c c c")), "--spec", str(spec), "-o", str(out)]
    for wrong in ("x", "c=x", "c", "c=1,2"):
        assert main([*arguments, "--max-ids", wrong]) == 2
        assert "--max-ids must be a number, or features with theirs" in capsys.readouterr().err
    for twice in (["--max-ids", "c=1,c=2"], ["--hash", "c=5", "--hash", "c=6"]):
        assert main([*arguments, *twice]) == 2
        assert capsys.readouterr().err.startswith(f"dlrm-tf: {twice[0]} must ")
    assert main([*arguments, "--max-ids", "c=2", "--last-seen", "2026-11-25"]) == 0
    assert main(["inspect", str(out / "vocabulary.npz")]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("  c "))
    assert row == ["c", "2", *["2026-11-25"] * 5, "0"]
    assert main(["inspect", "--json", str(out / "vocabulary.npz")]) == 0
    (feature,) = json.loads(capsys.readouterr().out)["features"]
    assert (feature["size"], feature["last_seen"]["median"]) == (2, "2026-11-25")
