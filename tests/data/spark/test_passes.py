"""Keys of parts, merged in any order, are the keys of the whole log as one machine learns them."""

import os
import pathlib
import random
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_tf import Bag, FeatureSpec, Vocabulary, prepare
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.key_column import as_column
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.readers.text import TextReader
from dlrm_tf.data.scan import Rules
from dlrm_tf.data.spark import first_seen, java, tasks
from dlrm_tf.data.spark.first_seen import MergedKeys, PartKeys, merge_shares, save_share
from dlrm_tf.data.spark.plan import Plan
from dlrm_tf.data.spec import CRITEO
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import MissingExtraError

SPEC = FeatureSpec(
    (("y", "label"), ("c", "categorical"), ("tags", "categorical"), ("d", "categorical"), ("h", "categorical")),
    separator=",",
    bags={"tags": Bag("|", 2)},
    shared={"t": ("tags", "d")},
    hashed={"h": 9},
)
key = st.one_of(st.just(""), st.integers(0, 6).map("{:08x}".format), st.sampled_from(["x", "é", "ffffffff", "0000000"]))
row = st.tuples(key, st.lists(key, min_size=1, max_size=3).map("|".join), key, key).map(lambda cells: ",".join(["1", *cells]))


def whole(rows, known):
    """What one machine learns: the vocabulary, and the counts of its key sets."""
    learnt = known.copy()
    ids = np.full((len(rows), SPEC.id_columns), -1, np.int32)
    Encoder(SPEC, learnt).write_ids(block_of(rows), ids, learn=True)
    counts = [np.zeros(keys.size, np.int64) for keys in learnt.key_sets]
    for number, places in zip(learnt.spaces.key_sets, SPEC.id_ranges):
        for i in ids[:, places].reshape(-1):
            if i >= 0:
                counts[number][i] += 1
    return learnt, counts


def block_of(rows):
    return parse_block("".join(line + "\n" for line in rows).encode(), SPEC)


@given(
    st.lists(st.lists(row, max_size=6), min_size=1, max_size=5), st.integers(1, 2), st.lists(key, unique=True), st.integers(0, 9)
)
def test_merged_parts_are_the_whole(tmp_path_factory, parts, buckets, known_keys, seed):
    """With keys known before, every pending row merged at once, and parts that arrive in any order."""
    known = Vocabulary.empty(SPEC.id_spaces)
    known.feature("d").assign(as_column(known_keys))
    shares = []
    for number, rows in enumerate(parts):
        keys = PartKeys(SPEC, counting=True)
        for half in (rows[:2], rows[2:]):
            if half:
                keys.add(block_of(half))
        shares += keys.shares(number, buckets)
    random.Random(seed).shuffle(shares)
    folder = tmp_path_factory.mktemp("keys")
    paths = [str(folder / str(bucket)) for bucket in range(buckets)]
    for bucket, path in enumerate(paths):
        save_share(path, merge_shares(share for number, share in shares if number == bucket))
    learnt, counts = whole([line for rows in parts for line in rows], known)
    merged, got = MergedKeys(paths), known.copy()
    got_counts = [merged.append_to(keys, i, learning=True) for i, keys in enumerate(got.key_sets)]
    assert got.fingerprint == learnt.fingerprint
    # Those of the hashed feature, the last one, are not wanted.
    assert [count.tolist() for count in got_counts[:2]] == [count.tolist() for count in counts[:2]]
    fixed = known.copy()
    fixed_counts = [merged.append_to(keys, i, learning=False) for i, keys in enumerate(fixed.key_sets)]
    assert fixed.fingerprint == known.fingerprint
    assert [count.tolist() for count in fixed_counts[:2]] == [
        count[: keys.size].tolist() for count, keys in zip(counts[:2], known.key_sets)
    ]


def test_merging_now_and_then_changes_nothing(monkeypatch):
    """Thousands of rows against `np.unique`."""
    generator = np.random.default_rng(0)
    keys, counts = generator.integers(0, 500, (20, 300)).astype(np.uint64), generator.integers(0, 9, (20, 300))
    shares = [first_seen.Share(k, np.arange(300) + 300 * i, c, []) for i, (k, c) in enumerate(zip(keys, counts))]
    monkeypatch.setattr(first_seen, "_PENDING", 700)
    merged = merge_shares(reversed(shares))
    values, first = np.unique(keys.reshape(-1), return_index=True)
    assert merged.keys.tolist() == values.tolist() and merged.first.tolist() == first.tolist()
    assert (
        merged.counts.tolist() == np.bincount(keys.reshape(-1).astype(int), counts.reshape(-1), 500)[values.astype(int)].tolist()
    )


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.integers(1, 12),
    st.data(),
)
def test_a_plan_finds_every_line(lines, new_file, shard_lines, data):
    """Walking a stretch's pieces from its place gives exactly the lines of its shards, with their numbers in their files."""
    files = np.cumsum([0, *new_file[: len(lines) - 1]]).tolist()
    parts, pieces, truth, at = [], [], [], {}
    for file, of_part in zip(files, lines):
        begin = at.get(file, (0, 0))
        offset, line = begin
        found = []
        for n in of_part:
            found.append((offset, n))
            truth += [(file, line + i) for i in range(n)]
            offset, line = offset + 10 * n, line + n
        parts.append((file, begin[0], offset))
        pieces.append(found)
        at[file] = offset, line
    plan = Plan(parts, pieces, shard_lines)
    assert (plan.lines, plan.shards) == (len(truth), -(-len(truth) // shard_lines))
    missing = [shard for shard in range(plan.shards) if data.draw(st.booleans())]
    made = []
    for stretch in plan.stretches(missing):
        place = stretch.place
        assert place["offset"] == 10 * place["line"]
        starts = [place["offset"], *(begin for _, begin, _ in stretch.parts[1:])]
        walked = [(file, i) for (file, _, stop), start in zip(stretch.parts, starts) for i in range(start // 10, stop // 10)]
        wanted = truth[stretch.first * shard_lines : (stretch.first + stretch.shards) * shard_lines]
        assert walked[place["skip"] :][: stretch.lines] == wanted
        assert len(walked) - place["skip"] - stretch.lines < 9  # the rest of a piece
        made += range(stretch.first, stretch.first + stretch.shards)
    assert made == missing


@pytest.mark.parametrize("piece_bytes", [3000, 20_000])
def test_pieces_are_cut_otherwise_in_each_pass(golden_dir, tmp_path, monkeypatch, piece_bytes):
    """Both passes as the workers run them, several pieces a part; they are cut where reading begins, which differs."""
    monkeypatch.setattr("dlrm_tf.data.readers.text.PIECE_BYTES", piece_bytes)
    log = str(golden_dir / "criteo" / "train.txt")
    local = prepare(log, tmp_path / "local", shard_lines=45, test_fraction=0)
    reader = TextReader(log, CRITEO)
    parts = [(0, *part) for part in reader.parts(70_000)]
    assert len(parts) > 1
    with Workspace.open(str(tmp_path / "out"), {}) as workspace:
        job = tasks.Job([reader], parts, Rules(CRITEO, True, 45), False, False, 1, os.getcwd(), str(tmp_path / "out"))
        plan = Plan(parts, [tasks.scan_part(job, i)[0].pieces for i in range(len(parts))], 45)
        assert max(len(pieces) for pieces in plan.to_dict()["pieces"]) > 3
        for stretch in plan.stretches(range(plan.shards)):
            tasks.make_shards(job, local.vocabulary().mapped(workspace.path("index-")), stretch)
        made = [pathlib.Path(workspace.rows_path(i)).read_bytes() for i in range(plan.shards)]
    assert made == [(tmp_path / "local" / shard.path).read_bytes() for shard in local.shards["train"]]


def test_a_java_that_lacks_spark_s_module(tmp_path):
    """The wrapper leaves out one option, and passes on the others as they are."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "release").write_text('MODULES="java.base"')
    (home / "bin" / "java").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (home / "bin" / "java").chmod(0o755)
    command = [f"{java._without_vectors(str(home))}/bin/java", "-a b", "--add-modules=jdk.incubator.vector", "c'd", ""]
    assert subprocess.check_output(command, text=True) == "-a b\nc'd\n\n"
    (home / "release").write_text('MODULES="java.base jdk.incubator.vector"')
    assert java._without_vectors(str(home)) == str(home)


def test_no_java(monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/some/where")
    assert java.java_home() == "/some/where"
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"Spark needs Java 17 or newer: set JAVA_HOME, or .*spark-local"):
        java.java_home()
