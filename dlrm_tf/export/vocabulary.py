"""The vocabulary that an export takes with it: checked against the model, cut to the ids that are kept, as bytes."""

import os
import tempfile
from collections.abc import Sequence
from typing import Optional, Union

import numpy as np

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.vocabulary_check import check_features, check_vocabulary, spec_difference
from dlrm_tf.errors import DataError, UsageError
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


def columns_of(
    spec: Union[None, StrPath, FeatureSpec], config: DLRMConfig, vocabulary: Vocabulary, *, weights: StrPath
) -> FeatureSpec:
    """The columns that say how texts are read, after a check that the spec is the model's.

    Args:
      spec: the columns of the log, or what `FeatureSpec.read` takes.
      config: the model's configuration.
      vocabulary: the model's vocabulary.
      weights: the weights file, named in errors.

    Returns:
      The spec; for a model of one key per feature, which needs none, one without bags and markers of missing cells.

    Raises:
      UsageError: a model with bags, but no spec.
      DataError: not a spec, or another one than the model's.
    """
    if spec is None:
        if config.has_bags:
            raise UsageError(
                f"{os.fspath(weights)}: has several keys per feature: wanted the columns of the log that say how they are "
                "separated (--spec FILE, or --data DIR). Received none"
            )
        return FeatureSpec.of((), vocabulary.names)
    columns = spec if isinstance(spec, FeatureSpec) else FeatureSpec.read(spec)
    check_features(columns, vocabulary, os.fspath(weights))
    found = spec_difference(config, columns)
    if found:
        raise DataError(
            f"feature spec: wanted the one {os.fspath(weights)} was trained with. Received another: the model {found}"
        )
    return columns


def prune_vocabulary(vocabulary: Vocabulary, kept: Sequence[np.ndarray]) -> Vocabulary:
    """A vocabulary of a part of the ids.

    Args:
      vocabulary: the whole one.
      kept: of each feature the ids that stay, ascending; they are numbered anew from 0.
    """
    masks = [np.zeros(size, bool) for size in vocabulary.sizes]
    for mask, ids in zip(masks, kept):
        mask[ids] = True
    return vocabulary.keep(masks)


def vocabulary_bytes(vocabulary: Vocabulary, kept: Optional[Sequence[np.ndarray]]) -> bytes:
    """The bytes of the file that `Vocabulary.save` writes, without the days on which keys were last seen.

    Args:
      vocabulary: the whole vocabulary.
      kept: of each feature the ids that stay, ascending; None keeps all.
    """
    if kept is not None:
        vocabulary = prune_vocabulary(vocabulary, kept)
    with tempfile.TemporaryDirectory(prefix="dlrm_tf_vocabulary_") as folder:
        path = os.path.join(folder, "vocabulary.npz")
        vocabulary.save(path, last_seen=False)
        with open(path, "rb") as file:
            return file.read()
