"""A SavedModel for TensorFlow Serving: explicit signatures, warm-up requests, a version that appears whole or not at all."""

import json
import os
import shutil
from collections.abc import Sequence
from typing import Any, Optional, Union

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.features import DENSE_PREPROCESSING
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.errors import UsageError, require
from dlrm_tf.export.savedmodel.metadata import METADATA, VOCABULARY
from dlrm_tf.export.savedmodel.served_model import ServedModel, write_method_names
from dlrm_tf.export.vocabulary import columns_of, load_vocabulary
from dlrm_tf.files import StrPath, atomic_dir, sha256_file
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import load
from dlrm_tf.model.inputs import zero_inputs
from dlrm_tf.versions import WARMUP_FILE, versions_on_disk
from dlrm_tf.weights.reader import WeightsReader

tf = tensorflow()

# Each is at most TF Serving's default max_batch_size, 1000: a C++ server that batches refuses a larger request and so the model.
WARMUP_BATCHES = (1, 64, 1000)


def choose_warmup_batches(batches: Optional[Sequence[int]] = None, max_batch_size: Optional[int] = None) -> tuple[int, ...]:
    """Batch sizes of warm-up requests that a server takes.

    Args:
      batches: asked for; None chooses `WARMUP_BATCHES` up to `max_batch_size`, and `max_batch_size` itself.
      max_batch_size: of the server that batches; None says nothing about it.

    Raises:
      UsageError: a number below 1, none, or one of `batches` that is over `max_batch_size`.
    """
    if max_batch_size is not None and max_batch_size < 1:
        raise UsageError(f"--max-batch-size: wanted a positive number. Received {max_batch_size}")
    if batches is None:
        if max_batch_size is None:
            return WARMUP_BATCHES
        return (*(batch for batch in WARMUP_BATCHES if batch < max_batch_size), max_batch_size)
    if not batches or min(batches) < 1:
        raise UsageError(f"--warmup-batches: wanted positive numbers. Received {batches}")
    if max_batch_size is not None and max(batches) > max_batch_size:
        raise UsageError(f"--warmup-batches: wanted at most --max-batch-size, {max_batch_size}. Received {max(batches)}")
    return tuple(batches)


def export_savedmodel(
    weights: StrPath,
    out_dir: StrPath = "saved_models",
    *,
    name: str = "dlrm",
    version: Optional[int] = None,
    vocabulary: Optional[StrPath] = None,
    spec: Union[None, StrPath, FeatureSpec] = None,
    warmup_batches: Optional[Sequence[int]] = None,
    max_batch_size: Optional[int] = None,
) -> str:
    """Writes `out_dir/name/version`, servable by TF Serving and `dlrm-tf serve`.

    The signatures are those of `ServedModel`; `raw` is there when a vocabulary is attached.

    Args:
      weights: a `.weights.h5` file.
      out_dir: where models are kept.
      name: the model's name, a folder of `out_dir`.
      version: a positive number; by default one more than the newest version there.
      vocabulary: a vocabulary file; adds the signature `raw` and is copied into the version. Its fingerprint must be the weights'
        (where those have one), its sizes the model's.
      spec: the columns of the log, or their JSON file; wanted with a vocabulary where features have several keys, for their
        separators, or where the log has markers of missing cells, which `raw` then takes as ''.
      warmup_batches: batch sizes of the warm-up requests, run by the server before the version becomes available; with
        batching, its allowed_batch_sizes. By default those of `choose_warmup_batches`.
      max_batch_size: of the server, where it batches: no warm-up request is larger.

    Returns:
      The version's directory.

    Raises:
      UsageError: `name` is not a plain folder name, `version` or a batch size is not positive, or there is no `spec` where one
        is wanted.
      FileExistsError: the version is already there.
      CheckpointError: `weights` is not a weights file.
      DataError: the vocabulary or the spec is not the one the weights were trained with.
    """
    if not name or name != os.path.basename(name) or name.startswith("."):
        raise UsageError(f"--name: wanted a plain folder name. Received {name!r}")
    if version is not None and version < 1:
        raise UsageError(f"--version: wanted a positive number. Received {version}")
    model_dir = os.path.join(os.fspath(out_dir), name)
    if version is None:
        version = max(versions_on_disk(model_dir), default=0) + 1
    batches = choose_warmup_batches(warmup_batches, max_batch_size)
    weights = os.fspath(weights)
    prediction_log = require("tensorflow_serving.apis.prediction_log_pb2", "serving")
    with WeightsReader(weights) as reader:
        config, trained_with = reader.config, reader.attributes["vocabulary_fingerprint"]
    known = None if vocabulary is None else load_vocabulary(vocabulary, config, trained_with, weights=weights)
    columns = None if known is None else columns_of(spec, config, known, weights=weights)
    bags, missing = (columns.bags, columns.missing) if columns is not None else ({}, ())
    target = os.path.join(model_dir, str(version))
    if os.path.exists(target):
        raise FileExistsError(f"{target}: already exists; choose another version")
    model = load(weights)
    with atomic_dir(target) as folder:
        served = ServedModel(model, known, bags=bags, missing=missing)
        tf.saved_model.save(served, folder, signatures=served.signatures())
        write_method_names(folder)
        os.makedirs(os.path.join(folder, "assets.extra"))
        _write_warmup(os.path.join(folder, WARMUP_FILE), prediction_log, model.config, name, batches)
        if vocabulary is not None:
            shutil.copyfile(vocabulary, os.path.join(folder, VOCABULARY))
        metadata = {
            "config": json.loads(model.config.to_json()),
            "weights_sha256": sha256_file(weights),
            "source_sha256": model.source_sha256,
            "vocabulary_fingerprint": model.vocabulary_fingerprint,
            "dense_preprocessing": DENSE_PREPROCESSING,
            **({"bags": {bag_name: bag.to_dict() for bag_name, bag in bags.items()}} if bags else {}),
            **({"missing": list(missing)} if missing else {}),
        }
        with open(os.path.join(folder, METADATA), "w", encoding="utf-8") as f:
            json.dump(metadata, f, indent=1)
    return target


def _write_warmup(path: str, prediction_log: Any, config: DLRMConfig, name: str, batches: Sequence[int]) -> None:
    with tf.io.TFRecordWriter(path) as writer:
        for batch in batches:
            log = prediction_log.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = "serving_default"
            for key, value in zero_inputs(config, batch).items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            writer.write(log.SerializeToString())
