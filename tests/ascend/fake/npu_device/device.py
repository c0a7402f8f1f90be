"""Device, options, world."""

import contextlib
import json
import os

import tensorflow as tf

_KNOWN_OPTIONS = ("precision_mode", "precision_mode_v2", "graph_run_mode", "hcom_parallel", "enable_small_channel")
_opened = {}
_default = None


def journal(event, **values):
    path = os.environ.get("FAKE_NPU_JOURNAL")
    if path:
        with open_file(path, "a") as f:
            f.write(json.dumps({"event": event, **values}) + "\n")


open_file = open


class _Options:
    def __setattr__(self, name, value):
        if name not in _KNOWN_OPTIONS:
            raise ValueError(f"{name} is not an option")
        super().__setattr__(name, value)


_options = _Options()


def global_options():
    return _options


def set_npu_loop_size(loop_size):
    journal("loop", size=loop_size)


def set_device_sat_mode(mode):
    journal("sat_mode", mode=mode)


def is_inf_nan_enabled():
    return not os.environ.get("FAKE_NPU_SATURATES")


def _workers():
    if "RANK_SIZE" in os.environ and "CM_WORKER_SIZE" in os.environ:
        raise ValueError("RANK_SIZE and CM_WORKER_SIZE cannot be set at the same time")
    size = int(os.environ.get("RANK_SIZE") or os.environ.get("CM_WORKER_SIZE") or 1)
    if size > 1 and "CM_WORKER_SIZE" not in os.environ:
        for name in ("RANK_TABLE_FILE", "RANK_ID"):
            if not os.environ.get(name):
                raise RuntimeError(f"{name} must be set in distributed mode")
    return size


class _Handle:
    def __init__(self, device_id, workers_num, worker_id):
        self._device_id, self.workers_num, self.worker_id = device_id, workers_num, worker_id
        self.wire = None
        if workers_num > 1:
            from hccl.wire import Wire

            self.wire = Wire(worker_id, workers_num)

    def name(self):
        return f"/job:localhost/replica:0/task:0/device:NPU:{self._device_id}"

    def scope(self):
        return contextlib.nullcontext()

    def is_cluster_worker(self):
        return self.workers_num > 1

    def as_default(self):
        """Patches TensorFlow for the process, without a way back."""
        global _default
        _default = self
        original = tf.function

        def function(func=None, *args, **kwargs):
            # The graph engine compiles; XLA is left out.
            kwargs["jit_compile"] = None
            return original(func, *args, **kwargs) if func is not None else original(*args, **kwargs)

        tf.function = function
        tf.device = lambda *_: contextlib.nullcontext()
        dropout = tf.nn.dropout
        tf.nn.dropout = lambda *args, **kwargs: dropout(*args, **kwargs)
        journal("as_default")
        return self


def open(device_id=None):
    from tensorflow.python.eager import context

    if device_id is None:
        device_id = int(os.environ.get("ASCEND_DEVICE_ID", "0"))
    if device_id in _opened:
        return _opened[device_id]
    if _opened:
        raise RuntimeError(f"device {device_id}: device {next(iter(_opened))} is open already")
    workers = _workers()
    if hasattr(_options, "precision_mode") and hasattr(_options, "precision_mode_v2"):
        raise RuntimeError("precision_mode and precision_mode_v2 cannot both be set")
    rank = 0
    if workers > 1:
        from hccl.manage.api import get_rank_id

        rank = get_rank_id()
    # Read here and never again: options set later have no effect.
    journal("open", device=device_id, options=dict(vars(_options)), idle=not context.context()._initialized)
    _opened[device_id] = _Handle(device_id, workers, rank)
    return _opened[device_id]


def default():
    return _default
