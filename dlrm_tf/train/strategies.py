"""tf.distribute behind one name: which processes and devices train together, and which rows each of them gets."""

import json
import os

from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()

STRATEGIES = ("one", "mirrored", "multi_worker", "parameter_server", "tpu")


def make_strategy(name: str, table_rows: int):
    """The strategy of a name.

    Args:
      name: `"one"`: this process, one device; `"mirrored"`: all GPUs of this machine, or all logical CPU devices when there is
        none; `"multi_worker"`: the workers of `TF_CONFIG`, in step; `"parameter_server"`: the coordinator of `TF_CONFIG`'s
        cluster, the table partitioned by rows over its ps; `"tpu"`: the TPU that `TPU_NAME` names, or the local one.
      table_rows: rows of the embedding table, which is how a partitioner knows it.

    Returns:
      A `tf.distribute.Strategy`.

    Raises:
      UsageError: an unknown name, or a `TF_CONFIG` or TPU that the strategy needs and that is not there.
    """
    if name == "one":
        return tf.distribute.get_strategy()
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker":
        _need_cluster(name, ("worker",))
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "parameter_server":
        cluster = _need_cluster(name, ("worker", "ps"))
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()

        def partitioner(shape, dtype, **unused):
            # Rows over the ps, as evenly as they go; the MLPs stay whole.
            whole = len(shape) != 2 or shape[0] != table_rows
            return [1 if whole else min(len(cluster["ps"]), table_rows)] + [1] * (len(shape) - 1)

        module = tf.distribute if hasattr(tf.distribute, "ParameterServerStrategy") else tf.distribute.experimental
        return module.ParameterServerStrategy(resolver, variable_partitioner=partitioner)
    if name == "tpu":
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver(os.environ.get("TPU_NAME", ""))
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
        except (ValueError, tf.errors.OpError) as e:
            raise UsageError(f"strategy tpu: no TPU found ({' '.join(str(e).split())[:200]}); name one in TPU_NAME") from e
        return tf.distribute.TPUStrategy(resolver)
    raise UsageError(f"strategy must be one of {', '.join(STRATEGIES)}. Received {name!r}")


def task() -> tuple:
    """`(type, index)` of this process in `TF_CONFIG`; `("chief", 0)` when there is none."""
    mine = _tf_config().get("task", {})
    return mine.get("type", "chief"), int(mine.get("index", 0))


def is_chief(name: str) -> bool:
    """Whether this process writes the run folder: the first worker of `multi_worker`, the only process otherwise."""
    kind, index = task()
    if name != "multi_worker":
        return True
    cluster = _tf_config().get("cluster", {})
    return kind == "chief" or (kind == "worker" and index == 0 and "chief" not in cluster)


def serve_task(protocol: str = "grpc") -> None:
    """Runs this process as the `ps` or `worker` that `TF_CONFIG` says, for a parameter-server run; never returns.

    Raises:
      UsageError: `TF_CONFIG` says something else.
    """
    kind, index = task()
    if kind not in ("ps", "worker"):
        raise UsageError(f"TF_CONFIG: wanted task type ps or worker. Received {kind!r}")
    cluster = tf.train.ClusterSpec(_need_cluster("parameter_server", ("worker", "ps")))
    options = tf.compat.v1.ConfigProto()
    # A worker runs functions that read, look up, and train; with one thread they would wait for each other.
    options.inter_op_parallelism_threads = max(4, os.cpu_count() or 1)
    server = tf.distribute.Server(cluster, job_name=kind, task_index=index, protocol=protocol, config=options)
    server.join()


def distribute(strategy, make_dataset):
    """Gives every replica its rows of each global batch.

    Replica r of n takes rows `[len * r // n, len * (r + 1) // n)` of every batch, so that all replicas together do what one
    process does with the same batches in the same order. Each process reads the whole of every batch (160 bytes a row).

    Args:
      strategy: the strategy.
      make_dataset: function that returns a dataset of global batches; called once in every process.

    Returns:
      What `model.fit` takes.
    """
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return make_dataset()

    def per_process(context):
        local = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * local

        def share(features, label):
            rows = tf.shape(label)[0]

            def part(replica):
                begin, end = rows * replica // replicas, rows * (replica + 1) // replicas
                return {name: value[begin:end] for name, value in features.items()}, label[begin:end]

            return tf.data.Dataset.range(first, first + local, output_type=tf.int32).map(part)

        return make_dataset().flat_map(share).prefetch(2)

    return strategy.distribute_datasets_from_function(per_process)


def _tf_config() -> dict:
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return {}
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise UsageError(f"TF_CONFIG: wanted JSON like {_EXAMPLE}. Received {text[:80]!r} ({e})") from e
    return config


_EXAMPLE = '{"cluster": {"worker": ["host:port"], "ps": ["host:port"]}, "task": {"type": "worker", "index": 0}}'


def _need_cluster(strategy: str, jobs: tuple) -> dict:
    cluster = _tf_config().get("cluster", {})
    missing = [job for job in jobs if not cluster.get(job)]
    if missing:
        raise UsageError(
            f"strategy {strategy}: TF_CONFIG names no {' and no '.join(missing)}; wanted {_EXAMPLE}, "
            "or try a cluster on this machine with --local-workers (and --local-ps)"
        )
    return cluster
