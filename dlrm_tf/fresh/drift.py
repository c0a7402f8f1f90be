"""drift: how rows differ from those a model learnt from, feature by feature."""

import os
from typing import Optional, Union

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.record_files import MANIFEST
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError, UsageError, require
from dlrm_tf.files import StrPath
from dlrm_tf.fresh.compare import categorical_drift, dense_drift
from dlrm_tf.fresh.counts import Counts, known_ids, quantile_edges
from dlrm_tf.fresh.figures import Drift
from dlrm_tf.fresh.sample import Sample
from dlrm_tf.fresh.score_drift import open_model, score_drift
from dlrm_tf.fresh.side import FolderSide, Rows, Side
from dlrm_tf.fresh.tfrecord import record_files
from dlrm_tf.progress import Progress

_SPLITS = ("all", "train", "test")


def drift(
    a: Union[StrPath, Records],
    b: Union[StrPath, Records],
    *,
    a_split: str = "all",
    b_split: str = "all",
    weights: Optional[StrPath] = None,
    bins: int = 10,
    top_keys: int = 100,
    sample_rows: int = 200_000,
    quiet: bool = True,
) -> Drift:
    """Compares rows B with rows A, the reference, such as those a model was trained on.

    Keys are compared as keys, so that the two may have different vocabularies. Every row is read, A's twice. Memory: 8 bytes a
    key of each vocabulary beside the keys, a look-up table of one feature's keys (16 to 32 bytes a key), and the samples.

    Args:
      a: a data folder.
      b: a data folder of the same features; or a request log, a TFRecord file of PredictionLog, plain or gzip, or a folder of
        them, whose ids are of A's vocabulary.
      a_split: rows of A: `"all"`, `"train"` or `"test"`.
      b_split: rows of B, where it is a folder.
      weights: also score rows with this model, trained with A's vocabulary: what `open_target` takes but a server.
      bins: of a dense feature's numbers above 0, with edges at the quantiles of A's; 0 and missing have bins of their own.
      top_keys: of a categorical feature so many of A's most frequent keys have bins; the others together have one, as have the
        missing key '' and keys that A's rows do not have.
      sample_rows: quantiles and scores come from a uniform sample of about `sample_rows` to
        `2 * sample_rows` rows of each side, or all of fewer.
      quiet: show no progress.

    Returns:
      The figures; see `Drift`.

    Raises:
      DataError: not such inputs, other features, or no rows.
      CheckpointError: `weights` is no weights file, or of another model.
      UsageError: an argument is out of range.
      MissingExtraError: a request log needs a package that is not installed.
    """
    for name, value in (("bins", bins), ("top_keys", top_keys), ("sample_rows", sample_rows)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1. Received {value}")
    for name, split in (("a_split", a_split), ("b_split", b_split)):
        if split not in _SPLITS:
            raise UsageError(f"{name} must be one of {', '.join(_SPLITS)}. Received {split!r}")
    reference = FolderSide(Records.open(a), a_split)
    other = _other_side(b, b_split, reference)
    model = None if weights is None else open_model(weights, reference)
    edges = _edges(reference, bins, sample_rows, quiet)
    counts = [Counts(side, edges, sample_rows=sample_rows, quiet=quiet) for side in (reference, other)]
    if not counts[1].rows:
        _no_rows(other)
    known = reference.missing_known, other.missing_known
    features = [
        dense_drift(name, edges[i], counts[0].dense[i], counts[1].dense[i], known)
        for i, name in enumerate(reference.spec.dense_names)
    ]
    same = reference.vocabulary.fingerprint == other.vocabulary.fingerprint
    translation = []  # B's ids to A's, of each feature, where rows are to be scored
    for i, name in enumerate(reference.spec.categorical_names):
        # A copy, so that the look-up table it makes is not kept.
        keys = reference.vocabulary.feature(name).copy(), other.vocabulary.feature(name)
        ids = np.arange(keys[0].size) if same else keys[1].ids_in(keys[0])
        features.append(categorical_drift(name, keys, (counts[0].keys[i], counts[1].keys[i]), ids, top_keys=top_keys))
        if model is not None:
            translation.append(np.append(np.where(ids < 0, keys[0].size, ids), [keys[0].size, UNUSED_PLACE]).astype(np.int32))
    score = None
    if model is not None:
        with model:
            score = score_drift(model, counts[0].sample.rows(), _translated(counts[1].sample.rows(), other, translation))
    rates = [count.positives / count.labelled if count.labelled else None for count in counts]
    return Drift(
        names=(reference.name, other.name),
        rows=(counts[0].rows, counts[1].rows),
        label_rate=(rates[0], rates[1]),
        features=tuple(features),
        score=score,
        skipped=other.skipped,
    )


def _other_side(b: Union[StrPath, Records], split: str, reference: FolderSide) -> Side:
    """B, checked to have A's features."""
    if not isinstance(b, Records) and _is_request_log(os.fspath(b)):
        if split != "all":
            raise UsageError(f"b_split must be all with a request log. Received {split!r}")
        require("tensorflow_serving.apis", "serving")
        from dlrm_tf.fresh.request_log import RequestLogSide

        return RequestLogSide(os.fspath(b), reference.spec, reference.vocabulary)
    other = FolderSide(Records.open(b), split)
    for kind in ("dense_names", "categorical_names", "hot_sizes", "weighted", "hashed", "unified"):
        wanted, received = (getattr(side.spec, kind) for side in (reference, other))
        if wanted != received:
            raise DataError(f"{other.name}: wanted the features of {reference.name}, {kind} {wanted}. Received {received}")
    return other


def _is_request_log(path: str) -> bool:
    if os.path.isdir(path):
        return not os.path.exists(os.path.join(path, MANIFEST)) and bool(record_files(path))
    return os.path.isfile(path)


def _no_rows(side: Side) -> None:
    count, why = side.skipped
    skipped = f"; {count:,} requests skipped: {why}" if count else ""
    raise DataError(f"{side.name}: wanted rows to compare. Received none{skipped}")


def _edges(reference: Side, bins: int, sample_rows: int, quiet: bool) -> list[np.ndarray]:
    """Of each dense feature the edges between bins of its numbers above 0."""
    sample = Sample(sample_rows)
    with Progress(f"drift: quantiles of {reference.name}", reference.total, "rows", quiet=quiet) as progress:
        for rows in reference.batches():
            sample.add(rows)
            progress.update(len(rows.label))
    if not sample.size:
        _no_rows(reference)
    return [quantile_edges(numbers[numbers > 0], bins) for numbers in sample.rows().dense.T]


def _translated(rows: Rows, side: Side, translation: list[np.ndarray]) -> Rows:
    """Rows with A's ids in place of the side's own."""
    ids = np.empty_like(rows.ids)
    for places, given, table in zip(side.spec.id_ranges, known_ids(rows.ids, side), translation):
        ids[:, places] = table[given]  # -1, an unused place, is the index of the table's last entry
    return rows._replace(ids=ids)
