"""Spark makes the same bytes as one machine, whatever the log, the arguments and what is killed meanwhile."""

import gzip
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from dying import ARGUMENTS, PART_BYTES, WORKER, prepare_dying, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf import Bag, FeatureSpec, Records, SparkEngine, prepare
from dlrm_tf.errors import DataError, SparkError, UsageError

pytest.importorskip("pyspark", reason="needs Python 3.11")
pytestmark = pytest.mark.slow  # Spark's start alone

COLUMNS = (("y", "label"), ("n", "int"), ("c", "categorical"), ("tags", "categorical"), ("d", "categorical"))
PLAIN = FeatureSpec(COLUMNS, separator=",")
BAGS = FeatureSpec(COLUMNS, separator=",", header=True, bags={"tags": Bag("|", 2, weight_separator=":")})
SHARED = FeatureSpec(COLUMNS, separator=",", bags={"tags": Bag("|", 3)}, shared={"t": ("tags", "d")}, hashed={"c": 7})


def assert_same_bytes(inputs, folder, context, part_bytes=40, **arguments) -> Records:
    engine = SparkEngine(context=context, part_bytes=part_bytes)
    records = prepare(inputs, folder / "spark", engine=engine, **arguments)
    prepare(inputs, folder / "local", **arguments)
    assert tree(folder / "spark") == tree(folder / "local")
    records.verify()
    return records


key = st.one_of(st.just(""), st.integers(0, 5).map("{:08x}".format), st.sampled_from(["ABCDEF01", "x", "é", "00000000"]))
line = st.tuples(st.sampled_from("01"), st.sampled_from(["", "7", "-1"]), key, st.lists(key, min_size=1, max_size=3), key)
line = line.map(lambda row: ",".join([*row[:3], "|".join(row[3]), row[4]]))
any_line = st.one_of(line, line, line, st.sampled_from(["", "1,2", "2,1,a,b,c", "0,x,new,new:-1,new"]))
# A file: lines, their ending, whether the last one has it, whether it is packed.
log = st.tuples(st.lists(any_line, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())


@settings(max_examples=10)
@given(
    st.lists(log, min_size=1, max_size=3),
    st.sampled_from([PLAIN, BAGS, SHARED]),
    st.integers(1, 5),
    st.integers(1, 90),
    st.sampled_from([{}, {"min_count": 2}, {"max_ids": 3, "last_seen": "2026-11-25"}, {"test_fraction": 0.4}]),
)
def test_same_bytes_on_random_logs(context, tmp_path_factory, files, spec, shard_lines, part_bytes, arguments):
    folder = tmp_path_factory.mktemp("log")
    paths = []
    for i, (lines, ending, ended, packed) in enumerate(files):
        text = ending.join(["y,n,c,tags,d"] * spec.header + ["1,2,a,b|c,d", *lines]) + ending * ended
        paths.append(folder / f"{i}.csv")
        paths[-1].write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    # However many of so few lines are bad.
    assert_same_bytes(paths, folder, context, part_bytes, spec=spec, shard_lines=shard_lines, max_bad_share=1, **arguments)


@pytest.fixture
def golden(golden_dir):
    return golden_dir / "criteo" / "train.txt"


def test_same_bytes_with_a_vocabulary(context, golden, tmp_path):
    """Grown, with rare keys left out and days noted; fixed, with days noted; and fixed alone, where keys are not even merged."""
    lines = golden.read_bytes().splitlines(keepends=True)
    (tmp_path / "first.txt").write_bytes(b"".join(lines[:200]))
    (tmp_path / "rest.txt").write_bytes(b"".join(lines[200:]))
    vocabulary = prepare(tmp_path / "first.txt", tmp_path / "first").vocabulary()
    rest = {"inputs": tmp_path / "rest.txt", "context": context, "part_bytes": 20_000, "vocabulary": vocabulary}
    grown = assert_same_bytes(folder=tmp_path / "grown", grow=True, min_count=3, last_seen="2026-11-25", **rest)
    assert sum(grown.sizes) > sum(vocabulary.sizes)
    assert_same_bytes(folder=tmp_path / "seen", last_seen="2026-11-25", shard_lines=100, **rest)
    assert assert_same_bytes(folder=tmp_path / "fixed", **rest).vocabulary().fingerprint == vocabulary.fingerprint


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        ({"a.txt": b"1,2,a,b,c\n" * 9, "b.txt": b"1,2,a,b,c\n" * 9 + b"1,2\n1\n"}, {"on_bad_line": "stop"}),
        ({"a.txt": b"1,2,a,b,c\n", "b.gz": gzip.compress(bytes(range(256)) * 40)[:-9], "c.txt": b"1\n"}, {}),
        ({"a.txt": b"1,2,a\n" * 20}, {}),
        ({"a.txt": b""}, {}),
    ],
)
def test_same_errors_and_nothing_left(context, tmp_path, content, arguments):
    paths = []
    for name, data in content.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    errors = []
    for engine in (None, SparkEngine(context=context, part_bytes=30)):
        with pytest.raises(DataError) as e:
            prepare(paths, tmp_path / "out", spec=PLAIN, engine=engine, **arguments)
        errors.append(str(e.value))
        assert not (tmp_path / "out").exists()
    assert errors[0] == errors[1]


@pytest.mark.parametrize("dies_at", [2, 9])
def test_a_killed_worker_is_replaced(context, golden, tmp_path, dies_at):
    """In the first pass, which reads six parts, and in the second one."""
    engine = SparkEngine(context=context, part_bytes=PART_BYTES)
    prepare_dying(golden, tmp_path / "out", tmp_path / "marks", dies_at, WORKER, engine)
    assert (tmp_path / "marks" / str(dies_at)).exists()
    assert tree(tmp_path / "out") == tree(prepare(golden, tmp_path / "local", **ARGUMENTS).folder)


DRIVER = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import dying
from dlrm_tf import SparkEngine
engine = SparkEngine("local[2]", part_bytes=dying.PART_BYTES)
golden, folder, dies_at = sys.argv[2], pathlib.Path(sys.argv[3]), int(sys.argv[4])
dying.prepare_dying(golden, folder / "out", folder / "marks", dies_at, os.getpid(), engine)
"""


@pytest.mark.parametrize("dies_at", [2, 12])
def test_a_killed_driver_is_resumed(context, golden, tmp_path, dies_at):
    arguments = [pathlib.Path(__file__).parent, golden, tmp_path, dies_at]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}  # for what a killed process leaves
    command = [sys.executable, "-c", DRIVER, *map(str, arguments)]
    died = subprocess.run(command, env=environment, capture_output=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    left = {path.name for path in (tmp_path / "out" / ".prepare").iterdir()}
    assert ("plan.json" in left) == (dies_at == 12)
    with pytest.raises(DataError, match="interrupted prepare with other engine"):
        prepare(str(golden), tmp_path / "out", **ARGUMENTS)
    prepare(str(golden), tmp_path / "out", engine=SparkEngine(context=context, part_bytes=PART_BYTES), **ARGUMENTS)
    assert tree(tmp_path / "out") == tree(prepare(str(golden), tmp_path / "local", **ARGUMENTS).folder)


def test_command_line(context, golden, tmp_path, capsys):
    from dlrm_tf.cli.main import main

    begin = ["prepare", str(golden), "-o", str(tmp_path / "out")]
    for options in (
        ["--master", "local[2]"],
        ["--engine", "spark", "--threads", "2"],
        ["--engine", "spark", "--spark-conf", "=8g"],
        ["--engine", "spark", "--master", "sc://somewhere"],
        ["--engine", "spark", "--master", "local[2]"],  # this process has a context already
    ):
        assert main([*begin, *options]) == 2
    assert [error.split(". Received")[0] for error in capsys.readouterr().err.splitlines()] == [
        "dlrm-tf: --master and --spark-conf are options of --engine spark",
        "dlrm-tf: threads must be None with an engine, whose cores are set there",
        "dlrm-tf: --spark-conf must be as spark.executor.memory=8g",
        "dlrm-tf: master must be a cluster's own URL, not one of Spark Connect, which has no RDDs",
        "dlrm-tf: this process has a SparkContext already: give it as `context`",
    ]
    assert not (tmp_path / "out").exists()


def test_arguments(context, golden, tmp_path):
    with pytest.raises(UsageError, match="part_bytes must be at least 1. Received 0"):
        SparkEngine(part_bytes=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(DataError, match="already holds files"):
        prepare(golden, tmp_path / "full", engine=SparkEngine("nowhere"))


def test_an_error_of_spark_is_one_line(context, golden, tmp_path):
    """Workers that die each time: Spark gives up, and the call that works goes on in the folder."""
    engine = SparkEngine(context=context)
    with pytest.raises(SparkError, match=r"^Spark at local\[2,4\] gave up: .*Python worker exited unexpectedly.*$"):
        prepare_dying(golden, tmp_path / "out", tmp_path / "marks", -1, WORKER, engine)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".prepare"]
    prepare(str(golden), tmp_path / "out", engine=engine, **ARGUMENTS)
    assert tree(tmp_path / "out") == tree(prepare(golden, tmp_path / "local", **ARGUMENTS).folder)
