"""`Loader`: a version folder becomes a warmed-up servable, as the server's options say."""

import os
import threading
from typing import Optional

from tensorflow.core.protobuf.config_pb2 import ConfigProto

from dlrm_tf.errors import ServingError, UsageError, require
from dlrm_tf.serve.any_servable import AnyServable
from dlrm_tf.serve.batching import BatchedServable
from dlrm_tf.serve.lite_servable import LITE_FILE, LiteServable
from dlrm_tf.serve.metrics import Metrics
from dlrm_tf.serve.options import ServerOptions
from dlrm_tf.serve.servable import Servable
from dlrm_tf.serve.warmup import warm_up
from dlrm_tf.serving_api.config_files import read_batching_parameters, read_text_proto
from dlrm_tf.serving_api.config_protos import BatchingParameters

# Below a version folder: how the version is batched, with --enable_per_model_batching_parameters.
BATCHING_FILE = "batching_params.pbtxt"


def session_config(options: ServerOptions) -> ConfigProto:
    """What sessions are made with, but for their threads where `options.parallelism()` has them.

    Raises:
      UsageError: `tensorflow_session_config_file` is not a file of a ConfigProto.
    """
    config, file = ConfigProto(), options.tensorflow_session_config_file
    if file:
        read_text_proto(file, config)
    if options.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = options.per_process_gpu_memory_fraction
    return config


class Loader:
    """Loads versions; those of all models share the threads that run batches."""

    def __init__(self, options: ServerOptions, metrics: Metrics):
        if options.prefer_tflite_model:
            require("ai_edge_litert.interpreter", "lite")  # a missing package ends the start, not a later load
        self._options, self._metrics = options, metrics
        self._session_config = session_config(options)
        self._batch_slots = threading.Semaphore(options.batch_threads())

    def __call__(self, path: str, version: int) -> AnyServable:
        """The servable of the folder `path`, ready to answer as version `version`.

        Raises:
          ServingError: no model, one that does not load, or warm-up requests that it refuses.
        """
        batching = self._batching(path)
        servable = self._open(path)
        if batching is not None:
            servable = BatchedServable(servable, batching, slots=self._batch_slots, observe=self._metrics.batch)
        try:
            if self._options.enable_model_warmup:
                warm_up(servable, version, iterations=self._options.num_request_iterations_for_warmup or 1)
        except BaseException:
            servable.close()
            raise
        return servable

    def _batching(self, path: str) -> Optional[BatchingParameters]:
        if not self._options.enable_per_model_batching_parameters:
            return self._options.batching
        file = os.path.join(path, BATCHING_FILE)
        try:
            return read_batching_parameters(file) if os.path.isfile(file) else None
        except UsageError as e:
            raise ServingError(str(e)) from e

    def _open(self, path: str) -> AnyServable:
        options = self._options
        inter, intra = options.parallelism()
        if options.prefer_tflite_model and os.path.isfile(os.path.join(path, LITE_FILE)):
            return LiteServable(
                path,
                pools=options.lite_pools(),
                threads=intra or 1,
                check_method_names=options.enable_signature_method_name_check,
                max_answer_bytes=options.max_answer_bytes,
            )
        return Servable(
            path,
            inter_op_threads=inter,
            intra_op_threads=intra,
            session_config=self._session_config,
            tags=options.tags,
            check_method_names=options.enable_signature_method_name_check,
            max_answer_bytes=options.max_answer_bytes,
        )
