"""The vocabulary that an export takes with it: checked against the model, cut to the ids that are kept, as bytes."""

import os
import tempfile
from collections.abc import Sequence
from typing import Optional

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.vocabulary_check import check_vocabulary
from dlrm_tf.files import StrPath


def load_vocabulary(path: StrPath, config: DLRMConfig, trained_with: str, *, weights: StrPath) -> Vocabulary:
    """Reads a vocabulary and checks that the weights were trained with it.

    Args:
      path: the vocabulary file.
      config: the model's configuration.
      trained_with: fingerprint of the vocabulary the model was trained with; "" when it is not known.
      weights: the weights file, named in errors.

    Raises:
      DataError: not a vocabulary file, or another vocabulary.
    """
    vocabulary = Vocabulary.load(path)
    check_vocabulary(vocabulary, config, trained_with, source=os.fspath(path), model=os.fspath(weights))
    return vocabulary


def prune_vocabulary(vocabulary: Vocabulary, kept: Sequence[np.ndarray]) -> Vocabulary:
    """A vocabulary of a part of the ids.

    Args:
      vocabulary: the whole one.
      kept: of each feature the ids that stay, ascending; they are numbered anew from 0.
    """
    features = []
    for name, ids in zip(vocabulary.names, kept):
        feature = vocabulary.feature(name)
        new_id = np.full(feature.size, -1, np.int64)
        new_id[ids] = np.arange(len(ids))
        values, value_ids = feature.numeric()
        others = [(key, int(new_id[i])) for key, i in feature.others() if new_id[i] >= 0]
        features.append((name, FeatureKeys(values[new_id[value_ids] >= 0], others)))
    return Vocabulary(features)


def vocabulary_bytes(vocabulary: Vocabulary, kept: Optional[Sequence[np.ndarray]]) -> bytes:
    """The bytes of the file that `Vocabulary.save` writes.

    Args:
      vocabulary: the whole vocabulary.
      kept: of each feature the ids that stay, ascending; None keeps all.
    """
    if kept is not None:
        vocabulary = prune_vocabulary(vocabulary, kept)
    with tempfile.TemporaryDirectory(prefix="dlrm_tf_vocabulary_") as folder:
        path = os.path.join(folder, "vocabulary.npz")
        vocabulary.save(path)
        with open(path, "rb") as file:
            return file.read()
