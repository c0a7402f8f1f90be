"""A stand-alone cluster, a master and two workers, on this machine: `make test-spark`."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from dying import EXECUTOR, PART_BYTES, prepare_dying, tree
from waiting import eventually

from dlrm_tf import SparkEngine, prepare

if not os.environ.get("DLRM_TF_SPARK_CLUSTER"):
    pytest.skip("make test-spark runs it", allow_module_level=True)
pytestmark = pytest.mark.cluster

# Workers find no other dlrm_tf than the one that the driver gives them.
CONF = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.pyspark.python": sys.executable}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """`(master's URL, folder with a folder for each executor that was started)`."""
    import pyspark

    from dlrm_tf.data.spark.java import java_home

    folder = tmp_path_factory.mktemp("cluster")
    home = java_home()
    environment = {**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONPATH": "", **({"JAVA_HOME": home} if home else {})}
    spark_class = pathlib.Path(pyspark.__file__).parent / "bin" / "spark-class"

    def start(name, what, *arguments):
        log = folder / f"{name}.log"
        command = [spark_class, f"org.apache.spark.deploy.{what}", "--host", "127.0.0.1", "--webui-port", "0", *arguments]
        with open(log, "wb") as file:
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=file, stderr=file, start_new_session=True)
        stack.callback(process.wait)
        stack.callback(os.killpg, process.pid, signal.SIGKILL)
        return log

    def said(log, pattern):
        eventually(lambda: re.search(pattern, log.read_text()))
        return re.search(pattern, log.read_text())

    with contextlib.ExitStack() as stack:
        master = said(start("master", "master.Master", "--port", "0"), r"Starting Spark master at (spark://\S+)")[1]
        for i in range(2):
            work = ["--cores", "1", "--memory", "1g", "--work-dir", str(folder / "executors")]
            said(start(f"worker{i}", "worker.Worker", *work, master), "Successfully registered with master")
        yield master, folder / "executors"


def run(*arguments):
    """`dlrm-tf prepare` in a process of its own; returns the exit code and the lines on standard error."""
    package = str(pathlib.Path(prepare.__code__.co_filename).parents[2])
    command = [sys.executable, "-m", "dlrm_tf", "prepare", *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": package}, stderr=subprocess.PIPE, timeout=300)
    return done.returncode, done.stderr.decode().splitlines()


def test_command_line(cluster, golden_dir, tmp_path, monkeypatch):
    """Relative names, which mean something else in the workers' folders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_bytes((golden_dir / "criteo" / "train.txt").read_bytes())
    options = [f"--spark-conf={name}={value}" for name, value in CONF.items()]
    code, lines = run("train.txt", "-o", "spark", "--engine", "spark", "--master", cluster[0], "--min-count", "2", *options)
    assert code == 0, lines
    assert all(line.startswith("prepare: ") for line in lines)  # nothing of Spark's own
    prepare("train.txt", "local", min_count=2)
    assert tree("spark") == tree("local")


@pytest.mark.parametrize("dies_at", [3, 10], ids=["first pass", "second pass"])
def test_a_killed_executor_is_replaced(cluster, golden_dir, tmp_path, dies_at):
    master, executors = cluster
    before = set(executors.glob("*/*"))
    engine = SparkEngine(master, conf=CONF, part_bytes=PART_BYTES)
    log = golden_dir / "criteo" / "train.txt"
    prepare_dying(log, tmp_path / "spark", tmp_path / "marks", dies_at, EXECUTOR, engine)
    assert len(set(executors.glob("*/*")) - before) > 2
    assert tree(tmp_path / "spark") == tree(prepare(str(log), tmp_path / "local", shard_lines=50, min_count=2).folder)


def test_a_master_that_is_not_there(tmp_path, golden_dir):
    """Told after Spark's three tries, which take a minute."""
    log = golden_dir / "criteo" / "train.txt"
    options = ["--engine", "spark", "--master", "spark://127.0.0.1:1", "--spark-conf", "spark.driver.host=127.0.0.1"]
    code, lines = run(str(log), "-o", str(tmp_path / "out"), *options)
    assert code == 1
    found = re.fullmatch(r"dlrm-tf: Spark at spark://127.0.0.1:1 gave up: no master answers there; its log: (.*)", lines[-1])
    os.unlink(found[1])
