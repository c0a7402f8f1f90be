"""A SavedModel for TensorFlow Serving: explicit signatures, warm-up requests, a version that appears whole or not at all."""

import json
import os
import shutil
from typing import Optional

import numpy as np

from dlrm_tf.errors import DataError, UsageError, require
from dlrm_tf.files import atomic_dir
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model import weights as weights_file

# Beside the graph, for people and tools: configuration, fingerprints, signatures. TF Serving ignores assets.extra's other files.
METADATA = os.path.join("assets.extra", "dlrm_tf.json")
VOCABULARY = os.path.join("assets.extra", "vocabulary")
WARMUP = os.path.join("assets.extra", "tf_serving_warmup_requests")
WARMUP_BATCHES = (1, 64, 1024)


def export_savedmodel(
    weights,
    out_dir="saved_models",
    name: str = "dlrm",
    version: Optional[int] = None,
    vocabulary=None,
    warmup_batches=WARMUP_BATCHES,
) -> str:
    """Writes `out_dir/name/version`, servable by TF Serving and `dlrm-tf serve`.

    Signature `serving_default` (Predict): `dense` float32 `[batch_size, dense_dim]`, already log(max(x, 0) + 1), and
    `categorical` int32 `[batch_size, F]` -> `probability` and `logit`, float32 `[batch_size, 1]`.

    Args:
      weights: a `.weights.h5` file.
      out_dir: where models are kept.
      name: the model's name, a folder of `out_dir`.
      version: a positive number; by default one more than the newest version there.
      vocabulary: a vocabulary file to carry along; its fingerprint must be the weights' (where those have one).
      warmup_batches: batch sizes of the warm-up requests, run by the server before the version becomes available.

    Returns:
      The version's directory.

    Raises:
      UsageError: a name or version that is none.
      FileExistsError: the version is already there.
      CheckpointError: `weights` is not a weights file.
      DataError: the vocabulary is not the one the weights were trained with.
    """
    if not name or name != os.path.basename(name) or name.startswith("."):
        raise UsageError(f"--name: wanted a plain folder name, came {name!r}")
    if version is not None and version < 1:
        raise UsageError(f"--version: wanted a positive number, came {version}")
    model_dir = os.path.join(os.fspath(out_dir), name)
    if version is None:
        version = max(versions(model_dir), default=0) + 1
    tf = tensorflow()
    prediction_log = require("tensorflow_serving.apis.prediction_log_pb2", "serving")
    if vocabulary is not None:
        _check_vocabulary(vocabulary, weights)
    target = os.path.join(model_dir, str(version))
    with atomic_dir(target) as folder:
        model = weights_file.load(weights)
        scorer = _scorer(model)
        tf.saved_model.save(scorer, folder, signatures={"serving_default": scorer.predict})
        os.makedirs(os.path.join(folder, "assets.extra"))
        _write_warmup(os.path.join(folder, WARMUP), prediction_log, model.config, name, warmup_batches)
        if vocabulary is not None:
            shutil.copyfile(vocabulary, os.path.join(folder, VOCABULARY))
        metadata = {
            "config": json.loads(model.config.to_json()),
            "source_sha256": model.source_sha256,
            "vocabulary_fingerprint": model.vocabulary_fingerprint,
            "dense_preprocessing": "log(max(x, 0) + 1), missing = 0",
        }
        with open(os.path.join(folder, METADATA), "w", encoding="utf-8") as f:
            json.dump(metadata, f, indent=1)
    return target


def versions(model_dir) -> list:
    """Version numbers in a model's folder, unordered; other names are ignored, as TF Serving does."""
    names = os.listdir(model_dir) if os.path.isdir(model_dir) else []
    return [int(n) for n in names if n.isascii() and n.isdigit()]


def _scorer(model):
    """A plain tf.Module over the model's variables: saving the Keras model itself would trace every layer into the file."""
    tf = tensorflow()
    config = model.config

    class Scorer(tf.Module):
        def __init__(self):
            super().__init__()
            self.model_variables = list(model.trainable_variables)

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, config.dense_dim], tf.float32, name="dense"),
                tf.TensorSpec([None, config.num_categorical], tf.int32, name="categorical"),
            ]
        )
        def predict(self, dense, categorical):
            logit = model({"dense": dense, "categorical": categorical}, training=False)
            return {"probability": tf.sigmoid(logit), "logit": logit}

    return Scorer()


def _write_warmup(path: str, prediction_log, config, name: str, batches) -> None:
    tf = tensorflow()
    with tf.io.TFRecordWriter(path) as writer:
        for batch in batches:
            log = prediction_log.PredictionLog()
            request = log.predict_log.request
            request.model_spec.name = name
            request.model_spec.signature_name = "serving_default"
            request.inputs["dense"].CopyFrom(tf.make_tensor_proto(np.zeros((batch, config.dense_dim), np.float32)))
            ids = np.zeros((batch, config.num_categorical), np.int32)
            request.inputs["categorical"].CopyFrom(tf.make_tensor_proto(ids))
            writer.write(log.SerializeToString())


def _check_vocabulary(vocabulary, weights) -> None:
    from dlrm_tf.data.vocabulary import Vocabulary

    loaded = Vocabulary.load(vocabulary)
    with weights_file.WeightsReader(weights) as reader:
        trained_with = reader.attributes["vocabulary_fingerprint"]
        sizes = reader.config.categorical_feature_sizes
    if trained_with and trained_with != loaded.fingerprint:
        raise DataError(
            f"{vocabulary}: wanted the vocabulary {weights} was trained with (fingerprint {trained_with}), "
            f"came fingerprint {loaded.fingerprint}"
        )
    if tuple(loaded.sizes) != sizes:
        raise DataError(f"{vocabulary}: sizes {tuple(loaded.sizes)} do not fit those of {weights}: {sizes}")
