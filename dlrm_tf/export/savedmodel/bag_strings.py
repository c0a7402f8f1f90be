"""Bags of category strings inside a TensorFlow graph: split and padded as `Encoder` does it."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.bag import WEIGHTS, Bag
from dlrm_tf.data.features import LARGEST
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()

# What `float` reads, without underscores.
_NUMBER = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"


class BagStrings:
    """Makes of the strings of each row one key per place of the model's input, with a mask of the places used, and weights.

    Only bad weights are other than in a log: there such a line is refused, here the key has weight 1. A server scores rows of
    several callers in one batch, so an error would fail the rows of all of them.

    Args:
      config: the model's configuration.
      names: of the categorical features.
      bags: how the texts of those with several keys are read, by name.
    """

    def __init__(self, config: DLRMConfig, names: Sequence[str], bags: Mapping[str, Bag]):
        self._config, self._names, self._bags = config, tuple(names), dict(bags)

    def split(self, strings: Any) -> tuple[Any, Any, Optional[Any]]:
        """Texts as in a log.

        Args:
          strings: string `[B, F]`.

        Returns:
          `(keys string, used bool, weights float32 or None)`, each `[B, id_columns]`.
        """
        parts = []
        for f, name in enumerate(self._names):
            bag, column = self._bags.get(name), strings[:, f]
            if bag is None:
                parts.append(_padded(tf.RaggedTensor.from_tensor(column[:, tf.newaxis]), 1, None))
                continue
            keys, weights = tf.strings.split(column, bag.separator), None
            if bag.weight_separator is not None:
                flat, weights = _split_weights(keys.values, bag.weight_separator)
                keys, weights = keys.with_values(flat), keys.with_values(weights)
            parts.append(_padded(keys, bag.max_keys, weights))
        return self._joined(parts)

    def example_features(self) -> dict[str, Any]:
        """What a tf.Example has for the categorical features, for `tf.io.parse_example`: a list of keys of each, by its name, and
        where keys have weights `NAME_weights`."""
        features: dict[str, Any] = {name: tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64) for name in self._names}
        for name, bag in self._bags.items():
            if bag.weight_separator is not None:
                features[name + WEIGHTS] = tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64)
        return features

    def of_examples(self, parsed: Mapping[str, Any]) -> tuple[Any, Any, Optional[Any]]:
        """The keys of parsed tf.Examples, which are taken whole; as `split`.

        Args:
          parsed: what `tf.io.parse_example` made with `example_features`.
        """
        parts = []
        for name, size in zip(self._names, self._config.bag_sizes):
            weights = parsed.get(name + WEIGHTS)
            parts.append(_padded(parsed[name], size, None if weights is None else _known(weights)))
        return self._joined(parts)

    def _joined(self, parts: list[tuple[Any, Any, Any]]) -> tuple[Any, Any, Optional[Any]]:
        keys, used, weights = (tf.concat(columns, axis=1) for columns in zip(*parts))
        return keys, used, weights if self._config.weighted else None


def _padded(keys: Any, size: int, weights: Optional[Any]) -> tuple[Any, Any, Any]:
    """`(keys, used, weights)` `[B, size]` of ragged keys: the first `size` of them; no key at all is the one key ''."""
    lengths = tf.clip_by_value(tf.cast(keys.row_lengths(), tf.int32), 1, size)
    # Where a row has fewer weights than keys, the others are 1.
    padded = tf.ones([keys.nrows(), size]) if weights is None else weights.to_tensor(1.0, shape=[None, size])
    return keys.to_tensor("", shape=[None, size]), tf.sequence_mask(lengths, size), padded


def _split_weights(items: Any, separator: str) -> tuple[Any, Any]:
    """`(keys string, weights float32)` of `key:weight` strings `[m]`; the weight follows the last separator."""
    pieces = tf.strings.split(items, separator)
    last = tf.gather(pieces.values, pieces.row_splits[1:] - 1)
    given = pieces.row_lengths() > 1
    keys = tf.strings.substr(items, tf.zeros_like(given, tf.int32), tf.maximum(_bytes(items) - _bytes(last) - 1, 0))
    text = tf.strings.strip(last)
    good = given & tf.strings.regex_full_match(text, _NUMBER)
    numbers = tf.strings.to_number(tf.where(good, text, tf.fill(tf.shape(text), "1")))
    return tf.where(given, keys, items), _known(numbers)


def _bytes(strings: Any) -> Any:
    return tf.strings.length(strings)


def _known(weights: Any) -> Any:
    """Weights with 1 in place of what a log would refuse; a tensor or a RaggedTensor."""
    flat = weights.flat_values if isinstance(weights, tf.RaggedTensor) else weights
    flat = tf.where((flat >= 0) & (flat <= LARGEST), flat, tf.ones_like(flat))
    return weights.with_flat_values(flat) if isinstance(weights, tf.RaggedTensor) else flat
