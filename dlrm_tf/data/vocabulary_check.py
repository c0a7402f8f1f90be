"""Whether a vocabulary and columns are those a model was trained with: else its ids mean other rows of the table."""

from collections.abc import Sequence

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError


def difference(
    config: DLRMConfig,
    trained_with: str,
    *,
    names: Sequence[str],
    sizes: Sequence[int],
    fingerprint: str,
    tables: Sequence[int],
) -> str:
    """The first difference between a model and a vocabulary, as text that continues "MODEL: "; '' when they fit.

    Args:
      config: the model's.
      trained_with: fingerprint of the vocabulary the model was trained with; '' when it is not known.
      names: the vocabulary's features.
      sizes: number of keys of each.
      fingerprint: the vocabulary's; '' when it is not known.
      tables: number of each feature's table (`IdSpaces.tables`).
    """
    if len(names) != config.num_categorical:
        return f"is for {config.num_categorical} categorical features, but the vocabulary has {len(names)}"
    for name, mine, other in zip(names, config.categorical_feature_sizes, sizes):
        if mine != other:
            return f"has {mine:,} ids for feature {name}, but the vocabulary has {other:,}"
    if tuple(tables) != config.tables:
        return f"has the tables {list(config.tables)} for its features, but the vocabulary {list(tables)}: features share others"
    if trained_with and fingerprint and trained_with != fingerprint:
        return f"was trained with vocabulary {trained_with[:12]}…, not with {fingerprint[:12]}…: its ids mean other keys"
    return ""


def spec_difference(config: DLRMConfig, spec: FeatureSpec) -> str:
    """The first difference between a model and the columns of a log, as text that continues "MODEL: "; '' when they fit.

    Args:
      config: the model's.
      spec: the columns.
    """
    if len(spec.dense_names) != config.dense_dim:
        return f"is for {config.dense_dim} dense features, but the data has {len(spec.dense_names)}"
    if len(spec.categorical_names) != config.num_categorical:
        return f"is for {config.num_categorical} categorical features, but the data has {len(spec.categorical_names)}"
    features = zip(spec.categorical_names, config.bag_sizes, spec.hot_sizes, config.poolings, spec.poolings)
    for name, mine, other, pooling, other_pooling in features:
        if mine != other:
            return f"takes {mine} keys of feature {name}, but the data has {other} (max_keys of the feature spec)"
        # Of one key without a weight of its own, sum and mean are the same.
        if name in spec.bags and (mine > 1 or config.weighted) and pooling != other_pooling:
            return f"pools feature {name} by {pooling}, but the feature spec says {other_pooling}"
    if config.weighted != spec.weighted:
        weighted = {True: "keys with weights", False: "keys without weights"}
        return f"takes {weighted[config.weighted]}, but the data has {weighted[spec.weighted]} (weight_separator)"
    return ""


def check_features(spec: FeatureSpec, vocabulary: Vocabulary, source: str) -> None:
    """Checks that a vocabulary is of the categorical features of `spec`, in their order.

    Args:
      spec: the columns.
      vocabulary: the vocabulary.
      source: named in errors.

    Raises:
      DataError: it is not; names both.
    """
    if vocabulary.names != spec.categorical_names:
        raise DataError(
            f"{source}: wanted a vocabulary of the features {', '.join(spec.categorical_names)}. Received one that has "
            f"{', '.join(vocabulary.names)}; give the feature spec of columns other than Criteo Kaggle's (--spec)"
        )


def check_vocabulary(vocabulary: Vocabulary, config: DLRMConfig, trained_with: str, *, source: str, model: str) -> None:
    """Checks that a vocabulary is the one a model was trained with.

    Args:
      vocabulary: the vocabulary.
      config: the model's.
      trained_with: fingerprint of the vocabulary the model was trained with; '' when it is not known.
      source: the vocabulary's file, named in errors.
      model: the model's file, named in errors.

    Raises:
      DataError: it is not; names the first difference.
    """
    of_vocabulary = {name: getattr(vocabulary, name) for name in ("names", "sizes", "fingerprint")}
    found = difference(config, trained_with, **of_vocabulary, tables=vocabulary.spaces.tables)
    if found:
        raise DataError(f"{source}: wanted the vocabulary {model} was trained with. Received another: {model} {found}")
