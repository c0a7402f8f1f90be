"""A SparkContext that is started quietly, jobs on it with progress, and Spark's errors as one line."""

import concurrent.futures
import contextlib
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

import dlrm_tf
from dlrm_tf.data.spark.java import java_home
from dlrm_tf.errors import DataError, SparkError, UsageError, require
from dlrm_tf.progress import Progress

_POLL_SECONDS = 0.2
# A task on one machine is tried so often too: `local[2]` alone means once.
_TRIES = 4


@contextlib.contextmanager
def spark_context(master: str, conf: Mapping[str, str], *, debug: bool = False) -> Iterator[Any]:
    """Starts a SparkContext and stops it at the end.

    What the JVM writes goes to a file, which is kept, and named in the error, where Spark fails.

    Args:
      master: as Spark takes it: `local[4]`, `spark://host:7077`, `yarn`, `k8s://…`.
      conf: Spark's settings by name.
      debug: leave the JVM's output on standard error.

    Raises:
      MissingExtraError: pyspark or Java is not installed.
      UsageError: not a master's URL, or this process has a context already.
      SparkError: Spark does not start, or gives up.
    """
    pyspark = require("pyspark", "spark")
    home = java_home()
    if master.startswith("sc://"):
        raise UsageError(f"master must be a cluster's own URL, not one of Spark Connect, which has no RDDs. Received {master!r}")
    local = re.fullmatch(r"local(?:\[([^,\]]+)\])?", master)
    settings = pyspark.SparkConf().setMaster(f"local[{local[1] or 1},{_TRIES}]" if local else master)
    settings.setAppName("dlrm-tf prepare").set("spark.ui.showConsoleProgress", "false").set("spark.ui.enabled", "false")
    if master.startswith("local"):
        settings.set("spark.driver.host", "127.0.0.1").set("spark.driver.bindAddress", "127.0.0.1")
    for name, value in conf.items():
        settings.set(name, value)
    # Only spark-submit reads this setting; a context made in Python takes the variable, and else `python3` of PATH.
    python = conf.get("spark.pyspark.python", sys.executable if master.startswith("local") else None)
    handle, log = tempfile.mkstemp(prefix="dlrm_tf_spark_", suffix=".log")
    os.close(handle)
    context, kept = None, False
    try:
        with spark_errors(master, log):
            environment = _environment("JAVA_HOME", home), _environment("PYSPARK_PYTHON", python)
            with environment[0], environment[1], contextlib.nullcontext() if debug else _stderr_to(log):
                context = pyspark.SparkContext(conf=settings)
            with contextlib.nullcontext() if master.startswith("local") else _shipped_package(context):
                yield context
    except SparkError as e:
        if not os.path.getsize(log):  # with `debug`, or from a JVM that an earlier context has started
            raise
        kept = True
        raise SparkError(f"{e}; its log: {log}") from e.__cause__
    finally:
        if not kept:
            os.unlink(log)
        if context is not None:
            with contextlib.suppress(Exception):
                context.stop()


@contextlib.contextmanager
def spark_errors(master: str, log: Optional[str] = None) -> Iterator[None]:
    """Turns exceptions of Spark into errors of one line.

    Args:
      master: named in errors.
      log: file of what the JVM wrote: alone it tells why the JVM did not start.

    Raises:
      UsageError: not a master's URL, or this process has a context already.
      SparkError: Spark does not start, or gives up.
    """
    try:
        yield
    except Exception as e:
        text = _spark_message(e, log)
        if text is None:  # an error of ours, which says all
            raise
        if "Master must" in text or "Could not parse Master URL" in text:
            raise UsageError(f"master must be local[N], spark://HOST:PORT or another of Spark's. Received {master!r}") from None
        if "Cannot run multiple SparkContexts" in text:
            raise UsageError("this process has a SparkContext already: give it as `context`") from None
        raise SparkError(f"Spark at {master} gave up: {text}") from e


@contextlib.contextmanager
def _environment(name: str, value: Any) -> Iterator[None]:
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _stderr_to(path: str) -> Iterator[None]:
    """Sends standard error of processes that are started meanwhile to a file, as long as they live."""
    saved = os.dup(2)
    try:
        with open(path, "ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextlib.contextmanager
def _shipped_package(context: Any) -> Iterator[None]:
    """Gives the workers this very version of the package; of their own they need Python and NumPy."""
    package = os.path.dirname(os.path.abspath(dlrm_tf.__file__))
    with tempfile.TemporaryDirectory() as folder:  # workers fetch from it, those too that come later
        path = os.path.join(folder, "dlrm_tf.zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for root, _, names in os.walk(package):
                for name in (name for name in names if name.endswith(".py")):
                    full = os.path.join(root, name)
                    archive.write(full, os.path.join("dlrm_tf", os.path.relpath(full, package)))
        context.addPyFile(path)
        yield


def run_job(context: Any, action: Callable[[], Any], progress: Progress, done: Callable[[], int]) -> Any:
    """Runs a job to its end and shows meanwhile how far it is.

    Args:
      context: where it runs.
      action: runs the job.
      progress: of the job.
      done: units done so far.
    """
    with progress, concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(action)
        try:
            while not concurrent.futures.wait([running], _POLL_SECONDS).done:
                progress.update(done() - progress.done)
        except BaseException:
            context.cancelAllJobs()
            raise
        result = running.result()
        progress.update(done() - progress.done)
        return result


def _spark_message(error: Exception, log: Optional[str]) -> Optional[str]:
    """What went wrong, from an exception of Spark, which may be pages of two languages' stack traces; None of any other one."""
    text = str(error)
    if not type(error).__module__.startswith(("py4j", "pyspark")) and "SparkContext" not in text:
        return None
    logged = ""
    if log:
        with open(log, encoding="utf-8", errors="replace") as file:
            logged = file.read()
    if "All masters are unresponsive" in logged:
        return "no master answers there"
    if "JAVA_GATEWAY_EXITED" in text:
        found = re.search(r'Exception in thread "main" [\w.]+: (.*)|^(.*No such file.*|Invalid .*|Error: .*)$', logged, re.M)
        return (found[1] or found[2])[:300] if found else "Java does not start"
    # The last line of a Python traceback says most; else the first line that the JVM gives.
    raised = re.findall(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception|Exit|Interrupt)): (.*)$", text.split("Driver stacktrace")[0], re.M)
    if raised and "Traceback (most recent call last)" in text:
        name, what = raised[-1]
        return what if name == DataError.__name__ else f"{name}: {what}"
    first = re.search(r"^: (?:[\w.]+: )?(.*)$", text, re.M)
    return (first[1] if first else text.split("\n")[0])[:300]
