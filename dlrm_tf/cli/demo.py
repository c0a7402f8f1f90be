"""Runs every step on generated data: convert, retrain, serve over gRPC, score as int8 TFLite; writes a report."""

import argparse
import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from dlrm_tf.errors import DLRMError, ServingError, UsageError

# File in every demo folder. Only a folder that has it is cleared for another run.
MARKER = ".dlrm_tf_demo"
ROWS, SEED = 400_000, 1
# Upstream's optimizer and batch (research/recommend/dlrm); a rate that falls to 0 ends better calibrated than its constant 0.15.
TRAINING = {"optimizer": "sgd", "learning_rate": 0.5, "decay": 1.0, "epochs": 1, "batch_size": 128}
SCORED_ROWS, CALLS = 4096, 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf demo`."""
    parser.add_argument("-o", "--output", default="demo_out", metavar="DIR", help="folder for everything (default: demo_out)")
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"generated rows (default: {ROWS:,})")
    parser.add_argument("--seed", type=int, default=SEED, help="of the data and of the first weights (default: 1)")


def run(args: argparse.Namespace) -> None:
    """Runs the verb: prints the report and the path of its page."""
    if args.rows < 7000:
        raise UsageError(f"--rows must be at least 7000 (the last seventh is for testing). Received {args.rows}")
    report = demo(args.output, rows=args.rows, seed=args.seed)
    print(report.text())
    print(f"\nreport: {os.path.join(args.output, 'report.html')}")


def demo(folder: str, *, rows: int = ROWS, seed: int = SEED) -> Any:
    """Runs every step: parity, data, conversion, training, evaluation, export, serving.

    Args:
      folder: for everything that is made; new, empty, or an earlier demo's, which is cleared.
      rows: generated rows.
      seed: of the data and of the first weights.

    Returns:
      The `Report`.

    Raises:
      UsageError: `folder` exists and is not an earlier demo's.
      DLRMError: a step failed, or a result is not what it must be.
    """
    from dlrm_tf.reports.demo_page import Report

    _clear(folder)
    report = Report(folder)
    path = functools.partial(os.path.join, folder)

    with report.step("parity with MindSpore") as step:
        _parity(step, path)
    with report.step("synth") as step:
        from dlrm_tf import synth

        made = synth(path("train.tsv"), rows, seed=seed, quiet=False)
        step.figure("rows", f"{rows:,}")
        step.figure("best possible AUC (test rows)", f"{made.best_auc_test:.4f}")
    with report.step("prepare") as step:
        from dlrm_tf import prepare

        records = prepare(path("train.tsv"), path("data"), quiet=False)
        step.figure("train / test rows", f"{records.rows('train'):,} / {records.rows('test'):,}")
        step.figure("ids in the vocabulary", f"{sum(records.sizes):,}")
    with report.step("MindSpore checkpoint -> Keras") as step:
        _convert(step, path, records, seed)
    with report.step("evaluate, untrained"):
        from dlrm_tf import evaluate

        before = evaluate(records, path("converted.weights.h5"), quiet=False)
    with report.step("train") as step:
        from dlrm_tf import fit

        trained = fit(records, path("run"), weights=path("converted.weights.h5"), seed=seed, **TRAINING)
        step.figure("validation rows, AUC", _validation(trained))
        step.figure("rows a second", f"{trained.history[-1]['rows_per_second']:,.0f}")
    with report.step("evaluate, trained") as step:
        after = evaluate(records, trained.best_weights, quiet=False)
        for name in ("auc", "logloss", "normalized_entropy", "accuracy", "calibration"):
            step.figure(name, f"{before[name]:.4f} -> {after[name]:.4f}")
        step.figure("AUC below the best possible", f"{made.best_auc_test - after['auc']:.4f}")
    with report.step("export") as step:
        from dlrm_tf import export_savedmodel, export_tflite

        dense, categorical, label = _test_rows(records)
        version = export_savedmodel(
            trained.best_weights, path("saved_models"), vocabulary=os.path.join(records.folder, "vocabulary.npz")
        )
        lite = export_tflite(trained.best_weights, path("dlrm.tflite"), data=records, quiet=True)
        step.figure("SavedModel", version)
        step.figure("float32 weights / TFLite", f"{lite.float_bytes / 1e6:.1f} MB / {lite.bytes / 1e6:.1f} MB")
    with report.step("serve and score") as step:
        scores = _serve(step, path, report, trained.best_weights, version, dense, categorical)
    report.pictures(
        run=path("run"),
        best_auc=made.best_auc_test,
        evaluation=after,
        label=label.reshape(-1),
        float_scores=scores["Keras"],
        lite_scores=scores["TFLite"],
    )
    report.save()
    return report


def _validation(trained: Any) -> str:
    """Rows and AUC of the measurement that chose the weights."""
    figures = trained.history[-1]["validation"]
    return f"{figures['rows']:,}, {figures['auc']:.4f}" if figures else "none"


def _clear(folder: str) -> None:
    """Makes `folder` anew; only an empty one or an earlier demo's is cleared."""
    if os.path.exists(folder):
        if not os.path.isdir(folder) or (os.listdir(folder) and not os.path.exists(os.path.join(folder, MARKER))):
            raise UsageError(f"--output must be a new folder or an earlier demo's. Received {folder!r}; choose another")
        shutil.rmtree(folder)
    os.makedirs(folder)
    with open(os.path.join(folder, MARKER), "w"):
        pass


def _parity(step: Any, path: Callable[[str], str]) -> None:
    """The bundled checkpoint that the real MindSpore wrote, converted, against the probabilities MindSpore computed with it."""
    import numpy as np

    import dlrm_tf
    from dlrm_tf.probability import sigmoid

    golden = os.path.join(os.path.dirname(dlrm_tf.__file__), "checkpoints", "golden")
    dlrm_tf.convert(os.path.join(golden, "tiny.trained.ckpt"), path("golden.weights.h5"), quiet=True)
    model = dlrm_tf.load(path("golden.weights.h5"))
    with np.load(os.path.join(golden, "tiny.npz")) as arrays:
        rows = {"dense": arrays["dense"][-1], "categorical": arrays["categorical"][-1]}
        wanted = arrays["prob_trained"]
    difference = float(np.abs(sigmoid(model.predict(rows, verbose=0)) - wanted).max())
    step.figure("largest difference of 64 probabilities", f"{difference:.1e}")
    if not difference <= 1e-6:
        raise DLRMError(f"the converted golden model differs from MindSpore by {difference:.1e}, wanted at most 1e-6")


def _convert(step: Any, path: Callable[[str], str], records: Any, seed: int) -> None:
    """A MindSpore-format checkpoint of a seeded model at the vocabulary just prepared, converted, and compared bit for bit."""
    import dataclasses

    import numpy as np

    import dlrm_tf

    config = dataclasses.replace(dlrm_tf.DLRMConfig.preset("criteo_kaggle"), categorical_feature_sizes=records.sizes)
    model = dlrm_tf.DLRM(config, seed=seed)
    model.save_weights(path("seeded.weights.h5"))
    dlrm_tf.convert(path("seeded.weights.h5"), path("seeded.ckpt"), quiet=True)
    done = dlrm_tf.convert(path("seeded.ckpt"), path("converted.weights.h5"), quiet=True)
    converted = dlrm_tf.load(path("converted.weights.h5"))
    equal = all(np.array_equal(a, b) for a, b in zip(model.get_weights(), converted.get_weights()))
    step.figure("tensors, bytes", f"{done.tensors}, {os.path.getsize(path('seeded.ckpt')):,}")
    step.figure("bit for bit as it was", "yes" if equal else "NO")
    if not equal:
        raise DLRMError("the converted weights are not those the MindSpore checkpoint was written from")


def _test_rows(records: Any) -> tuple[Any, Any, Any]:
    """The first test rows as the model takes them: `(dense, categorical, label)`."""
    from dlrm_tf.data.features import log_dense

    dense, categorical, label = records.numpy("test", 0, SCORED_ROWS)
    return log_dense(dense), categorical, label


def _serve(
    step: Any, path: Callable[[str], str], report: Any, weights: str, version: str, dense: Any, categorical: Any
) -> dict[str, Any]:
    """Scores the same rows in five ways; a real server process answers over a socket."""
    import numpy as np

    import dlrm_tf
    from dlrm_tf.lite import Scorer
    from dlrm_tf.probability import sigmoid
    from dlrm_tf.score import Client, open_target

    model = dlrm_tf.load(weights)
    scores = {"Keras": sigmoid(model.predict({"dense": dense, "categorical": categorical}, batch_size=1024, verbose=0))[:, 0]}
    with open_target(version) as target:
        scores["SavedModel"] = target.score(dense, categorical)
    scorer = Scorer(path("dlrm.tflite"))
    scores["TFLite"] = np.asarray(scorer.score(dense, categorical)).reshape(-1)
    report.latencies["TFLite int8, in process, 1 row"] = _latency(scorer, dense, categorical, 1)
    with _server(os.path.abspath(path("saved_models/dlrm"))) as address, Client(address, model_name="dlrm") as client:
        scores["gRPC"] = client.score(dense, categorical)
        for rows in (1, 64):
            report.latencies[f"gRPC, {rows} row{'s' if rows > 1 else ''} a call"] = _latency(client, dense, categorical, rows)
    for name in ("SavedModel", "gRPC", "TFLite"):
        error = np.abs(scores[name] - scores["Keras"])
        step.figure(f"{name} against Keras, largest / mean difference", f"{error.max():.1e} / {error.mean():.1e}")
        if name != "TFLite" and not error.max() <= 1e-6:
            raise DLRMError(f"{name} differs from Keras by {error.max():.1e}, wanted at most 1e-6")
    for name, seconds in report.latencies.items():
        step.figure(name, f"p50 {np.percentile(seconds, 50) * 1e3:.2f} ms, p99 {np.percentile(seconds, 99) * 1e3:.2f} ms")
    return scores


def _latency(target: Any, dense: Any, categorical: Any, rows: int) -> list[float]:
    """Seconds of each of `CALLS` calls of `target.score` with `rows` rows, after some calls to warm up."""
    warm_up, seconds = 20, []
    for i in [*range(warm_up), *range(CALLS)]:
        start = time.perf_counter()
        target.score(dense[i : i + rows], categorical[i : i + rows])
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:]


@contextlib.contextmanager
def _server(model_base_path: str) -> Iterator[str]:
    """Runs `dlrm-tf serve` as a process of its own; yields its `host:port`."""
    command = [sys.executable, "-m", "dlrm_tf", "serve", "--model_name", "dlrm", "--port", "0"]
    command += ["--model_base_path", model_base_path]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdout is not None
        try:
            place = re.match(r"ready grpc=(\S+)", process.stdout.readline())
            if place:
                yield place[1]
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
        if not place:
            log.seek(0)
            raise ServingError(f"the model server did not start: {log.read().strip() or 'no message'}")
