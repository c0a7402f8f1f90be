"""ServedModel: the functions a served DLRM offers, traced over the model's variables, with names that clients rely on."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.features import log_dense_tensor, without_markers_tensor
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.export.savedmodel.bag_strings import BagStrings
from dlrm_tf.export.savedmodel.string_ids import StringIds
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.dlrm import DLRM
from dlrm_tf.model.inputs import input_specs

tf = tensorflow()

# Signature -> method name in the proto. tf.saved_model.save writes the predict name for all, and TF Serving's Classify and
# Regress calls refuse a signature of another method.
METHOD_NAMES = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}


class ServedModel(tf.Module):
    """A plain tf.Module over a DLRM's variables: saving the Keras model itself would trace every layer into the file.

    Signatures, all with a free batch size:
      serving_default: `dense` float32 `[B, dense_dim]`, already log(max(x, 0) + 1), and `categorical` int32 `[B, F]`
        -> `probability` and `logit`, float32 `[B, 1]`. Of a model with bags, or without dense features, the inputs of
        `DLRMConfig.inputs`: there is no `dense` of 0 columns, in no signature.
      raw (with a vocabulary): `dense` float32 `[B, dense_dim]` as in the log, and `categorical` string `[B, F]` -> the same two.
        NaN and infinity count as missing; a missing category is ''. A bag's string is its text in the log (`a|b`).
      classify: `inputs`, serialized tf.Example `[B]` with `dense` (dense_dim floats as in the log) and `categorical`
        (F int64 ids) -> `classes` string `[B, 2]` ("0", "1"), `scores` `[B, 2]`.
      regress: the same `inputs` -> `outputs` float32 `[B]`, the probability.

    With bags, a tf.Example has as many ids as serving_default, and `weights` with them. If there is a vocabulary it has keys
    instead: a bytes list NAME for each categorical feature, and a float list NAME_weights for one whose keys have weights.

    Args:
      model: a `dlrm_tf.DLRM`.
      vocabulary: a `dlrm_tf.Vocabulary`, or None.
      bags: how the texts of features with several keys are read, by name; wanted of a model with bags that has a vocabulary.
      missing: texts that are '' in `raw`, as in the log.
    """

    def __init__(
        self,
        model: DLRM,
        vocabulary: Optional[Vocabulary] = None,
        *,
        bags: Optional[Mapping[str, Bag]] = None,
        missing: Sequence[str] = (),
    ):
        super().__init__()
        self._score = lambda inputs: model(inputs, training=False)
        self._config = model.config
        # Tracked here, since the closure above is not.
        self.model_variables = list(model.trainable_variables)
        self.string_ids = None if vocabulary is None else StringIds(vocabulary, model.config.column_features)
        self._bag_strings, self._missing = None, tuple(missing)
        if vocabulary is not None and (bags or model.config.has_bags):  # a bag of one key is split too
            self._bag_strings = BagStrings(model.config, vocabulary.names, bags or {})

    def signatures(self) -> dict[str, Any]:
        """Name -> traced function, for `tf.saved_model.save`."""
        inputs = input_specs(self._config)
        strings = tf.TensorSpec([None, self._config.num_categorical], tf.string, name="categorical")
        examples = tf.TensorSpec([None], tf.string, name="inputs")
        functions = {
            "serving_default": tf.function(self.predict).get_concrete_function(**inputs),
            "classify": tf.function(self.classify).get_concrete_function(examples),
            "regress": tf.function(self.regress).get_concrete_function(examples),
        }
        if self.string_ids is not None:
            of_log = {name: spec for name, spec in inputs.items() if name == "dense"}
            functions["raw"] = tf.function(self.raw).get_concrete_function(**of_log, categorical=strings)
        return functions

    def predict(self, **inputs: Any) -> dict[str, Any]:
        """The signature `serving_default`: the inputs of `DLRMConfig.inputs`, of prepared rows."""
        logit = self._score(inputs)
        return {"probability": tf.sigmoid(logit), "logit": logit}

    def raw(self, categorical: Any, dense: Optional[Any] = None) -> dict[str, Any]:
        """The signature `raw`: `dense` and `categorical` of rows as in the log."""
        assert self.string_ids is not None  # else there is no such signature
        categorical = without_markers_tensor(categorical, self._missing)
        if self._bag_strings:
            return self._of_log(dense, self._ids_of_bags(*self._bag_strings.split(categorical)))
        return self._of_log(dense, {"categorical": self.string_ids(categorical)})

    def _of_log(self, dense: Optional[Any], keys: dict[str, Any]) -> dict[str, Any]:
        """`predict` of dense features as in the log, if there are any, and of ids and weights."""
        return self.predict(**({} if dense is None else {"dense": log_dense_tensor(dense)}), **keys)

    def _ids_of_bags(self, keys: Any, used: Any, weights: Optional[Any]) -> dict[str, Any]:
        assert self.string_ids is not None
        ids = self.string_ids(keys)
        ids = tf.where(used, ids, tf.fill(tf.shape(ids), UNUSED_PLACE))
        return {"categorical": ids} if weights is None else {"categorical": ids, "weights": weights}

    def classify(self, inputs: Any) -> dict[str, Any]:
        """The signature `classify`: `inputs`, tf.Examples, to the two classes and their probabilities."""
        probability = self._from_examples(inputs)
        classes = tf.tile(tf.constant([["0", "1"]]), [tf.shape(probability)[0], 1])
        return {"classes": classes, "scores": tf.concat([1 - probability, probability], axis=1)}

    def regress(self, inputs: Any) -> dict[str, Any]:
        """The signature `regress`: `inputs`, tf.Examples, to probabilities."""
        return {"outputs": tf.squeeze(self._from_examples(inputs), axis=1)}

    def _from_examples(self, inputs: Any) -> Any:
        # int64 ids go in as they are: the model compares them before it narrows them.
        types = {"dense": tf.float32, "categorical": tf.int64, "weights": tf.float32}
        rows = {name: tf.io.FixedLenFeature([columns], types[name]) for name, (_, columns) in self._config.inputs.items()}
        if self._bag_strings is not None:
            dense = {name: feature for name, feature in rows.items() if name == "dense"}
            parsed = tf.io.parse_example(inputs, {**dense, **self._bag_strings.example_features()})
            keys = self._ids_of_bags(*self._bag_strings.of_examples(parsed))
        else:
            parsed = tf.io.parse_example(inputs, rows)
            keys = {name: parsed[name] for name in rows if name != "dense"}
        return self._of_log(parsed.get("dense"), keys)["probability"]


def write_method_names(export_dir: str) -> None:
    """Gives the signatures of the SavedModel in the folder `export_dir` TF Serving's method names, in place."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(export_dir)
    for signature, method in METHOD_NAMES.items():
        updater.replace_method_name(signature_key=signature, method_name=method, tags=["serve"])
    updater.save()
