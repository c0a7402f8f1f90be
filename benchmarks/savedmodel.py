"""Export and load of a SavedModel with its vocabulary in the graph, by vocabulary size: seconds, peak memory, latency.

    python benchmarks/savedmodel.py --share 0.1        # a tenth of Criteo's vocabulary
    python benchmarks/savedmodel.py --share 1          # the Hub model: needs 9 GB of disk and memory

The peer is the same model loaded from its weights file by Keras. Every stage runs in a process of its own.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile

STAGES = ("export", "load in Keras", "load in TensorFlow Serving's way")


def _config(share: float):
    from dlrm_tf import DLRMConfig

    full = DLRMConfig.preset("criteo_kaggle")
    sizes = tuple(max(1, int(size * share)) for size in full.categorical_feature_sizes)
    return dataclasses.replace(full, categorical_feature_sizes=sizes)


def make_inputs(folder: str, share: float) -> None:
    """Writes seeded weights and a vocabulary of hex keys, in bounded memory."""
    import numpy as np

    from dlrm_tf import Vocabulary
    from dlrm_tf.data.vocabulary import FeatureKeys
    from dlrm_tf.weights.layout import table_chunks
    from dlrm_tf.weights.writer import WeightsWriter

    config, generator = _config(share), np.random.default_rng(0)
    names, features = [f"C{f + 1}" for f in range(config.num_categorical)], []
    for size in config.categorical_feature_sizes:
        # An odd multiplier makes distinct keys.
        keys = np.arange(size, dtype=np.uint32) * np.uint32(generator.integers(1, 2**30) * 2 + 1)
        features.append(FeatureKeys(keys))
    vocabulary = Vocabulary(list(zip(names, features)))
    vocabulary.save(os.path.join(folder, "vocabulary.npz"))
    path = os.path.join(folder, "m.weights.h5")
    with WeightsWriter(path, config, vocabulary_fingerprint=vocabulary.fingerprint) as writer:
        for mlp, i, fan_in, fan_out in config.dense_shapes():
            kernel = generator.normal(0, (2 / (fan_in + fan_out)) ** 0.5, (fan_in, fan_out)).astype(np.float32)
            writer.write_dense(mlp, i, kernel, np.zeros(fan_out, np.float32))
        for start, stop in table_chunks(config):
            rows = generator.random((stop - start, config.embedding_dim), np.float32)
            writer.write_table(start, (rows - 0.5) * 0.1)


def run_stage(stage: int, folder: str, share: float) -> dict:
    """One stage in this process: seconds and peak memory beyond that of importing."""
    import resource
    import time

    import numpy as np

    from dlrm_tf.keras2 import tensorflow

    tf = tensorflow()
    import dlrm_tf.model.dlrm  # noqa: F401

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    config, before, start = _config(share), peak(), time.perf_counter()
    result = {}
    dense = np.ones((64, config.dense_dim), np.float32)
    if stage == 0:
        from dlrm_tf import export_savedmodel

        path = export_savedmodel(f"{folder}/m.weights.h5", folder, vocabulary=f"{folder}/vocabulary.npz")
        result["disk_gb"] = sum(os.path.getsize(os.path.join(r, n)) for r, _, names in os.walk(path) for n in names) / 1e9
    elif stage == 1:
        import dlrm_tf

        dlrm_tf.load(f"{folder}/m.weights.h5")
    else:
        session = tf.compat.v1.Session(graph=tf.Graph())
        with session.graph.as_default():
            meta = tf.compat.v1.saved_model.load(session, ["serve"], f"{folder}/dlrm/1")
        result["seconds"] = time.perf_counter() - start
        strings = np.random.default_rng(1).integers(0, 2**32, (64, config.num_categorical))
        strings = np.array([[f"{value:08x}" for value in row] for row in strings], object)
        ids = np.random.default_rng(1).integers(0, 3, (64, config.num_categorical)).astype(np.int32)
        for name, categorical in (("serving_default", ids), ("raw", strings)):
            signature = meta.signature_def[name]
            feeds = [signature.inputs[key].name for key in ("dense", "categorical")]
            call = session.make_callable(signature.outputs["probability"].name, feeds)
            for rows in (1, 64):
                for _ in range(20):
                    call(dense[:rows], categorical[:rows])
                times = []
                for _ in range(200):
                    begin = time.perf_counter()
                    call(dense[:rows], categorical[:rows])
                    times.append(time.perf_counter() - begin)
                result[f"{name}, {rows} rows: p50 us"] = float(np.median(times) * 1e6)
    result.setdefault("seconds", time.perf_counter() - start)
    return {**result, "peak_gb": peak() - before}


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="of Criteo Kaggle's vocabulary (default: 0.1)")
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage is not None:
        print(json.dumps(run_stage(args.stage, args.folder, args.share)))
        return
    config = _config(args.share)
    table_gb = config.table_bytes / 1e9
    print(f"table {config.table_rows:,} rows, {table_gb:.2f} GB; memory is beyond TensorFlow's own")
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(folder, args.share)
        for number, name in enumerate(STAGES):
            command = [sys.executable, __file__, "--share", str(args.share), "--stage", str(number), "--folder", folder]
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            result = json.loads(done.stdout.splitlines()[-1])
            print(f"{name:<34}{result.pop('seconds'):7.1f} s{result.pop('peak_gb'):7.2f} GB peak")
            for key, value in result.items():
                print(f"    {key:<40}{value:,.2f}")


if __name__ == "__main__":
    main()
