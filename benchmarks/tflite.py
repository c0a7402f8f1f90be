"""The exported TFLite file against onnxruntime on the same trained model: size, load time, memory, latency, error, AUC.

    python benchmarks/tflite.py                                   # trains a model on 300 k generated rows first
    python benchmarks/tflite.py --rows 2000000 --cardinalities criteo
    python benchmarks/tflite.py --data DIR --weights FILE         # a model that is there already
    python benchmarks/tflite.py --full                            # export of the Hub model's 33.8 M rows: time, memory; no peer

Needs onnx and onnxruntime (pip install onnx onnxruntime). Every contender runs in a process of its own; they take turns, round by
round, so that a slow spell of the machine hits all. Figures are medians over the rounds. The ONNX graph is the same network with
one float table; `int8` is onnxruntime's quantize_dynamic of it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

CONTENDERS = {
    "onnxruntime float32": "float32.onnx",
    "onnxruntime int8": "int8.onnx",
    "TFLite float32 table": "table.tflite",
    "int8 rows, float32": "float32.tflite",
    "int8 rows, float16": "float16.tflite",
    "int8 rows, mixed": "mixed.tflite",
    "int8 rows, dynamic": "dynamic.tflite",
    "int4 rows, dynamic": "int4.tflite",
}
BATCHES, THREADS = (1, 64), (1, 2)
EVALUATION_ROWS = 50_000


def onnx_model(weights: str, path: str) -> None:
    """Writes the network as ONNX: guard, one Gather, Gemm layers, the Gram matrix, its lower triangle."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from dlrm_tf.weights.reader import WeightsReader

    nodes, constants = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    with WeightsReader(weights) as reader:
        config = reader.config
        vectors = config.num_categorical + 1

        def mlp(name, layers, x):
            for i in range(layers):
                kernel, bias = reader.dense(name, i)
                inputs = [x, constant(f"{name}{i}k", kernel), constant(f"{name}{i}b", bias)]
                x = node("Gemm", inputs, f"{name}{i}")
                if name == "bottom_mlp" or i < layers - 1:
                    x = node("Relu", [x], f"{name}{i}r")
            return x

        bottom = mlp("bottom_mlp", len(config.bottom_mlp), "dense")
        sizes = constant("sizes", np.array(config.categorical_feature_sizes, np.int32))
        low = node("GreaterOrEqual", ["categorical", constant("zero", np.array(0, np.int32))], "low")
        known = node("And", [low, node("Less", ["categorical", sizes], "high")], "known")
        guarded = node("Where", [known, "categorical", sizes], "guarded")
        rows = node("Add", [guarded, constant("offsets", np.array(config.block_offsets, np.int32))], "rows")
        embedded = node("Gather", [constant("table", reader.table(0, config.table_rows)), rows], "embedded", axis=0)
    first = node("Unsqueeze", [bottom, constant("axis", np.array([1], np.int64))], "first")
    stack = node("Concat", [first, embedded], "stack", axis=1)
    gram = node("MatMul", [stack, node("Transpose", [stack], "turned", perm=[0, 2, 1])], "gram")
    flat = node("Reshape", [gram, constant("flat_shape", np.array([-1, vectors * vectors], np.int64))], "flat")
    li, lj = np.tril_indices(vectors, -1)
    pairs = node("Gather", [flat, constant("pairs_at", (li * vectors + lj).astype(np.int32))], "pairs", axis=1)
    with WeightsReader(weights) as reader:
        logit = mlp("top_mlp", len(config.top_mlp), node("Concat", [bottom, pairs], "features", axis=1))
    node("Sigmoid", [logit], "probability")
    graph = helper.make_graph(
        nodes,
        "dlrm",
        [
            helper.make_tensor_value_info("dense", TensorProto.FLOAT, ["n", config.dense_dim]),
            helper.make_tensor_value_info("categorical", TensorProto.INT32, ["n", config.num_categorical]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n", 1])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def float_table_tflite(weights: str, path: str) -> None:
    """The same network, its float table as it is, through the converter without optimizations."""
    from dlrm_tf.keras2 import tensorflow

    tf = tensorflow()
    import dlrm_tf

    model = dlrm_tf.load(weights)
    config = model.config
    module = tf.Module()
    module.model = model

    @tf.function(
        input_signature=[tf.TensorSpec([None, config.dense_dim]), tf.TensorSpec([None, config.num_categorical], tf.int32)]
    )
    def score(dense, categorical):
        return {"probability": tf.sigmoid(model({"dense": dense, "categorical": categorical}))}

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures={"score": score})
        converted = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["score"]).convert()
    with open(path, "wb") as file:
        file.write(converted)


def make_inputs(folder: str, args) -> tuple:
    """`(data folder, weights)`: those given, or generated and trained here."""
    if args.data:
        return args.data, args.weights
    from dlrm_tf.data.prepare import prepare
    from dlrm_tf.data.synthetic import synth
    from dlrm_tf.train.fit import fit

    log, data = os.path.join(folder, "log.tsv"), os.path.join(folder, "data")
    synth(log, args.rows, seed=1, cardinalities=args.cardinalities)
    prepare(log, data, quiet=True)
    os.unlink(log)
    return data, fit(data, os.path.join(folder, "run"), quiet=True).best_weights


def make_models(folder: str, data: str, weights: str) -> dict:
    """Writes every contender's file; returns its path by name."""
    from dlrm_tf.export.tflite.export import TFLiteExporter

    paths = {name: os.path.join(folder, file) for name, file in CONTENDERS.items()}
    exporter = TFLiteExporter(weights, data=data, quiet=True)
    for mlp in ("float32", "float16", "mixed", "dynamic"):
        exporter.export(paths[f"int8 rows, {mlp}"], mlp=mlp)
    exporter.export(paths["int4 rows, dynamic"], table_dtype="int4", max_auc_loss=1.0)
    float_table_tflite(weights, paths["TFLite float32 table"])
    onnx_model(weights, paths["onnxruntime float32"])
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)
    quantize_dynamic(paths["onnxruntime float32"], paths["onnxruntime int8"], weight_type=QuantType.QInt8)
    return paths


class Session:
    """One contender in this process: `run(dense, categorical)` -> probabilities `[n]`."""

    def __init__(self, path: str, threads: int):
        if path.endswith(".onnx"):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
            self._start = time.perf_counter()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self.run = lambda dense, ids: session.run(None, {"dense": dense, "categorical": ids})[0][:, 0]
        else:
            from ai_edge_litert.interpreter import Interpreter

            self._start = time.perf_counter()
            self._interpreter = Interpreter(model_path=path, num_threads=threads)
            runner = self._interpreter.get_signature_runner("score")
            self._at = [runner.get_input_details()[name]["index"] for name in ("dense", "categorical")]
            self._out, self._rows = runner.get_output_details()["probability"]["index"], None
            self.run = self._run_tflite
        self.load_seconds = None

    def _run_tflite(self, dense, ids):
        if len(dense) != self._rows:
            for at, array in zip(self._at, (dense, ids)):
                self._interpreter.resize_tensor_input(at, array.shape)
            self._interpreter.allocate_tensors()
            self._rows = len(dense)
        for at, array in zip(self._at, (dense, ids)):
            self._interpreter.set_tensor(at, array)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._out)[:, 0]

    def first(self, dense, ids):
        """Runs once; notes the seconds from opening the file to the first score."""
        self.run(dense, ids)
        self.load_seconds = time.perf_counter() - self._start


def _memory() -> dict:
    """Private and resident-peak bytes of this process."""
    values = {}
    for file, names in (("smaps_rollup", ("Private_Clean", "Private_Dirty")), ("status", ("VmHWM",))):
        with open(f"/proc/self/{file}") as f:
            for line in f:
                name, _, rest = line.partition(":")
                if name in names:
                    values[name] = 1024 * int(rest.split()[0])
    return {"private": values["Private_Dirty"], "mapped": values["Private_Clean"], "peak": values["VmHWM"]}


def measure_full(folder: str) -> None:
    """Exports seeded weights of the Hub model's size and scores with the file; prints time and memory."""
    import dlrm_tf
    from dlrm_tf.export.tflite import graph as lite_graph  # noqa: F401, loads TensorFlow before the first reading
    from dlrm_tf.weights.layout import table_chunks
    from dlrm_tf.weights.writer import WeightsWriter

    config, generator = dlrm_tf.DLRMConfig.preset("criteo_kaggle"), np.random.default_rng(0)
    weights, path = os.path.join(folder, "m.weights.h5"), os.path.join(folder, "m.tflite")
    with WeightsWriter(weights, config) as writer:
        for mlp, i, fan_in, fan_out in config.dense_shapes():
            kernel = generator.normal(0, np.sqrt(2 / (fan_in + fan_out)), (fan_in, fan_out)).astype(np.float32)
            writer.write_dense(mlp, i, kernel, np.zeros(fan_out, np.float32))
        for start, stop in table_chunks(config):
            writer.write_table(start, generator.standard_normal((stop - start, 16), np.float32) * np.float32(0.05))
    before, start = _memory(), time.perf_counter()
    report = dlrm_tf.export_tflite(weights, path, quiet=True)
    seconds, peak = time.perf_counter() - start, _memory()["peak"]
    print(report)
    own = peak - before["peak"]
    print(f"export: {seconds:.1f} s, peak memory {peak / 1e6:,.0f} MB, of which {own / 1e6:,.0f} MB on top of TensorFlow")
    rows = os.path.join(folder, "rows.npz")
    ids = np.stack([generator.integers(0, size, 5000) for size in config.categorical_feature_sizes], 1).astype(np.int32)
    np.savez(rows, dense=generator.random((5000, 13), np.float32), categorical=ids)
    worker = Worker(path, 1, rows)
    times = [worker.ask(batch=batch, seconds=2.0)["median"] for batch in BATCHES]
    started = worker.started
    print(
        f"load to first score {1e3 * started['load']:.1f} ms, private memory {started['private'] / 1e6:.1f} MB; "
        + ", ".join(f"batch {b}: {1e6 * t:.1f} us" for b, t in zip(BATCHES, times))
        + " (uniform ids)"
    )
    worker.close()


def work(path: str, threads: int, rows: str) -> None:
    """Child process: answers commands on standard input, one JSON line each."""
    with np.load(rows) as file:
        dense, ids = file["dense"], file["categorical"]
    # Imports are not the model's: they come before the first reading.
    if path.endswith(".onnx"):
        import onnxruntime  # noqa: F401
    else:
        import ai_edge_litert.interpreter  # noqa: F401
    before = _memory()
    session = Session(path, threads)
    session.first(dense[:1], ids[:1])
    for i in range(200):
        session.run(dense[i : i + 1], ids[i : i + 1])
    after = _memory()
    grown = {name: after[name] - before[name] for name in before}
    print(json.dumps({"load": session.load_seconds, **grown}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        if "score" in command:
            probability = [session.run(dense[i : i + 512], ids[i : i + 512]) for i in range(0, len(dense), 512)]
            np.save(command["score"], np.concatenate(probability))
            print(json.dumps({}), flush=True)
            continue
        batch, seconds, times, at = command["batch"], command["seconds"], [], 0
        for _ in range(20):
            session.run(dense[:batch], ids[:batch])
        stop = time.perf_counter() + seconds
        while time.perf_counter() < stop:
            at = (at + batch) % (len(dense) - batch)
            d, c = dense[at : at + batch], ids[at : at + batch]
            start = time.perf_counter()
            session.run(d, c)
            times.append(time.perf_counter() - start)
        print(json.dumps({"median": statistics.median(times)}), flush=True)


class Worker:
    """A child process that runs one contender."""

    def __init__(self, path: str, threads: int, rows: str):
        command = [sys.executable, os.path.abspath(__file__), "--work", path, str(threads), rows]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.started = json.loads(self._process.stdout.readline())

    def ask(self, **command) -> dict:
        """Sends a command, waits for its answer."""
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def main(argv=None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="prepared data, with --weights")
    parser.add_argument("--weights", help="model trained on it")
    parser.add_argument("--rows", type=int, default=300_000, help="generated rows without --data")
    parser.add_argument("--cardinalities", default="small", help="of generated rows: small or criteo")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one contender in one round and setting")
    parser.add_argument("--full", action="store_true", help="the Hub model's size, without a peer: needs 3 GB of disk")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        return work(args.work[0], int(args.work[1]), args.work[2])
    if bool(args.data) != bool(args.weights):
        parser.error("--data and --weights go together")
    with tempfile.TemporaryDirectory(prefix="dlrm_tf_bench_") as folder:
        measure_full(folder) if args.full else _measure(folder, args)
    return None


def _measure(folder: str, args) -> None:
    from dlrm_tf.data.features import log_dense
    from dlrm_tf.data.records import Records
    from dlrm_tf.export.tflite.report import compare
    from dlrm_tf.model.subset import float_probabilities

    data, weights = make_inputs(folder, args)
    dense, categorical, label = Records.open(data).numpy("test", 0, EVALUATION_ROWS)
    rows = os.path.join(folder, "rows.npz")
    np.savez(rows, dense=log_dense(dense), categorical=categorical)
    paths = make_models(folder, data, weights)
    workers = {(name, t): Worker(path, t, rows) for name, path in paths.items() for t in THREADS}
    times = {}
    for _ in range(args.rounds):
        for batch in BATCHES:
            for key, worker in workers.items():
                answer = worker.ask(batch=batch, seconds=args.seconds)
                times.setdefault((*key, batch), []).append(answer["median"])
    reference = float_probabilities(weights, log_dense(dense), categorical)
    settings = [(batch, threads) for batch in BATCHES for threads in THREADS]
    head = "".join(f"{f'b{b}/{t}T us':>12}" for b, t in settings)
    print(f"{'':<22}{'MB':>8}{'load ms':>9}{'private MB':>12}{'peak MB':>9}{head}{'mean err':>10}{'max err':>9}{'AUC':>9}")
    for name, path in paths.items():
        worker = workers[name, 1]
        scores = os.path.join(folder, "scores.npy")
        worker.ask(score=scores)
        quality = compare(np.load(scores), reference, label.reshape(-1))
        figures = "".join(f"{1e6 * statistics.median(times[name, t, b]):>12.1f}" for b, t in settings)
        started = worker.started
        print(
            f"{name:<22}{os.path.getsize(path) / 1e6:>8.1f}{1e3 * started['load']:>9.1f}{started['private'] / 1e6:>12.1f}"
            f"{started['peak'] / 1e6:>9.1f}{figures}{quality['mean_error']:>10.5f}{quality['max_error']:>9.5f}"
            f"{quality['quality']['auc']:>9.5f}"
        )
    print(f"\nlatency as a share of onnxruntime's float32 (median of {args.rounds} rounds, each against the same round's)")
    print(f"{'':<22}" + "".join(f"{f'b{b}/{t}T':>12}" for b, t in settings))
    for name in paths:
        shares = []
        for b, t in settings:
            pairs = zip(times[name, t, b], times["onnxruntime float32", t, b])
            shares.append(statistics.median(mine / theirs for mine, theirs in pairs))
        print(f"{name:<22}" + "".join(f"{share:>12.2f}" for share in shares))
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
