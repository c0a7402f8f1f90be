"""ServedModel: the functions a served DLRM offers, traced over the model's variables, with names that clients rely on."""

from typing import Any, Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.features import log_dense_tensor
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.export.savedmodel.string_ids import StringIds
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM

tf = tensorflow()

# Signature -> method name in the proto. tf.saved_model.save writes the predict name for all, and TF Serving's Classify and
# Regress calls refuse a signature of another method.
METHOD_NAMES = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}


class ServedModel(tf.Module):
    """A plain tf.Module over a DLRM's variables: saving the Keras model itself would trace every layer into the file.

    Signatures, all with a free batch size:
      serving_default: `dense` float32 `[B, dense_dim]`, already log(max(x, 0) + 1), and `categorical` int32 `[B, F]`
        -> `probability` and `logit`, float32 `[B, 1]`.
      raw (with a vocabulary): `dense` float32 `[B, dense_dim]` as in the log, and `categorical` string `[B, F]` -> the same two.
        NaN and infinity count as missing; a missing category is ''.
      classify: `inputs`, serialized tf.Example `[B]` with `dense` (dense_dim floats as in the log) and `categorical`
        (F int64 ids) -> `classes` string `[B, 2]` ("0", "1"), `scores` `[B, 2]`.
      regress: the same `inputs` -> `outputs` float32 `[B]`, the probability.

    Args:
      model: a `dlrm_tf.DLRM`.
      vocabulary: a `dlrm_tf.Vocabulary`, or None.
    """

    def __init__(self, model: DLRM, vocabulary: Optional[Vocabulary] = None):
        super().__init__()
        self._score = lambda dense, ids: model({"dense": dense, "categorical": ids}, training=False)
        self._config = model.config
        # Tracked here, since the closure above is not.
        self.model_variables = list(model.trainable_variables)
        self.string_ids = None if vocabulary is None else StringIds(vocabulary)

    def signatures(self) -> dict[str, Any]:
        """Name -> traced function, for `tf.saved_model.save`."""
        dense = tf.TensorSpec([None, self._config.dense_dim], tf.float32, name="dense")
        ids = tf.TensorSpec([None, self._config.num_categorical], tf.int32, name="categorical")
        strings = tf.TensorSpec([None, self._config.num_categorical], tf.string, name="categorical")
        examples = tf.TensorSpec([None], tf.string, name="inputs")
        functions = {
            "serving_default": tf.function(self.predict).get_concrete_function(dense, ids),
            "classify": tf.function(self.classify).get_concrete_function(examples),
            "regress": tf.function(self.regress).get_concrete_function(examples),
        }
        if self.string_ids is not None:
            functions["raw"] = tf.function(self.raw).get_concrete_function(dense, strings)
        return functions

    def predict(self, dense: Any, categorical: Any) -> dict[str, Any]:
        """The signature `serving_default`: `dense` and `categorical` of prepared rows."""
        logit = self._score(dense, categorical)
        return {"probability": tf.sigmoid(logit), "logit": logit}

    def raw(self, dense: Any, categorical: Any) -> dict[str, Any]:
        """The signature `raw`: `dense` and `categorical` of rows as in the log."""
        assert self.string_ids is not None  # else there is no such signature
        return self.predict(log_dense_tensor(dense), self.string_ids(categorical))

    def classify(self, inputs: Any) -> dict[str, Any]:
        """The signature `classify`: `inputs`, tf.Examples, to the two classes and their probabilities."""
        probability = self._from_examples(inputs)
        classes = tf.tile(tf.constant([["0", "1"]]), [tf.shape(probability)[0], 1])
        return {"classes": classes, "scores": tf.concat([1 - probability, probability], axis=1)}

    def regress(self, inputs: Any) -> dict[str, Any]:
        """The signature `regress`: `inputs`, tf.Examples, to probabilities."""
        return {"outputs": tf.squeeze(self._from_examples(inputs), axis=1)}

    def _from_examples(self, inputs: Any) -> Any:
        parsed = tf.io.parse_example(
            inputs,
            {
                "dense": tf.io.FixedLenFeature([self._config.dense_dim], tf.float32),
                "categorical": tf.io.FixedLenFeature([self._config.num_categorical], tf.int64),
            },
        )
        # int64 ids go in as they are: the model compares them before it narrows them.
        return self.predict(log_dense_tensor(parsed["dense"]), parsed["categorical"])["probability"]


def write_method_names(export_dir: str) -> None:
    """Gives the signatures of the SavedModel in the folder `export_dir` TF Serving's method names, in place."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(export_dir)
    for signature, method in METHOD_NAMES.items():
        updater.replace_method_name(signature_key=signature, method_name=method, tags=["serve"])
    updater.save()


def warmup_inputs(config: DLRMConfig, batch: int) -> dict[str, np.ndarray]:
    """Inputs of one `serving_default` warm-up request of `batch` rows, of the shapes in `config`."""
    return {
        "dense": np.zeros((batch, config.dense_dim), np.float32),
        "categorical": np.zeros((batch, config.num_categorical), np.int32),
    }
