"""Rows to score, from arrays, prepared records or a raw log, a batch at a time."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from typing import Optional, Union

import numpy as np

from dlrm_tf.data.encoder import Batch, Encoder
from dlrm_tf.data.features import log_dense
from dlrm_tf.data.readers.open import open_readers
from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.record_files import MANIFEST
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError


def read_rows(
    path: str,
    *,
    batch_size: int,
    categorical: Optional[str] = None,
    vocabulary: Optional[str] = None,
    split: str = "test",
    spec: Union[None, str, FeatureSpec] = None,
) -> Iterator[Batch]:
    """Yields what `Encoder` makes of rows, at most `batch_size` at a time.

    Args:
      path: an `.npz` with arrays `dense` (already log(max(x, 0) + 1); none for a model without dense features) and `categorical`
        (ids), and of a model whose keys have weights also `weights`; an `.npy` of `dense`; a folder of records; anything else is
        a raw log, in any form that `prepare` takes. The label column may be missing, as in Criteo's test.txt.
      batch_size: rows a batch.
      categorical: the `.npy` of ids that goes with an `.npy` of `dense`.
      vocabulary: file with the keys of each feature, for a raw log.
      split: of a folder of records, `train` or `test`.
      spec: the columns of a raw log that are not Criteo Kaggle's, or what `FeatureSpec.read` takes.

    Raises:
      DataError: the file can't be read as one of these, or the arrays don't fit each other.
    """
    if os.path.isdir(path) and (vocabulary is None or os.path.exists(os.path.join(path, MANIFEST))):
        return _records(path, split, batch_size)
    if path.endswith((".npz", ".npy")):
        return _slices(path, _arrays(path, categorical), batch_size)
    if vocabulary is None:
        raise DataError(f"{path}: raw TSV needs a vocabulary to look ids up: give --vocabulary FILE (prepare writes it)")
    columns = spec if isinstance(spec, FeatureSpec) else CRITEO if spec is None else FeatureSpec.read(spec)
    encoder = Encoder(columns, Vocabulary.load(vocabulary), source=vocabulary)
    return _log(open_readers(path, columns), encoder, batch_size)


def _arrays(path: str, categorical: Optional[str]) -> Batch:
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as archive:
                if "categorical" not in archive.files:
                    raise DataError(f"{path}: wanted arrays dense, if any, and categorical. Received {', '.join(archive.files)}")
                categories = archive["categorical"]
                dense = archive["dense"] if "dense" in archive.files else np.zeros((*categories.shape[:1], 0), np.float32)
                return dense, categories, *(archive[name] for name in ("weights",) if name in archive.files)
        if categorical is None:
            raise DataError(f"{path}: an .npy of dense features needs --categorical IDS.npy")
        return np.load(path, mmap_mode="r", allow_pickle=False), np.load(categorical, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(f"{path}: not a numpy file of plain numbers ({e})") from e


def _slices(path: str, arrays: Batch, batch_size: int) -> Iterator[Batch]:
    dense, categorical, *weights = arrays
    if dense.ndim != 2 or categorical.ndim != 2 or len(dense) != len(categorical):
        raise DataError(
            f"{path}: wanted dense [rows, D] and categorical [rows, id_columns] with the same rows. Received "
            f"{list(dense.shape)} and {list(categorical.shape)}"
        )
    if dense.dtype.kind not in "fiu" or categorical.dtype.kind not in "iu":
        raise DataError(
            f"{path}: wanted dense as float32 and categorical as int32. Received {dense.dtype} and {categorical.dtype}"
        )
    if weights and (weights[0].shape != categorical.shape or weights[0].dtype.kind not in "fiu"):
        raise DataError(
            f"{path}: wanted weights as float32 {list(categorical.shape)}, the shape of categorical. Received "
            f"{weights[0].dtype} {list(weights[0].shape)}"
        )
    if categorical.size and (int(categorical.min()) < -(2**31) or int(categorical.max()) >= 2**31):
        raise DataError(f"{path}: categorical has ids that do not fit int32, from {categorical.min()} to {categorical.max()}")
    types = np.float32, np.int32, np.float32
    for start in range(0, len(dense), batch_size):
        yield tuple(np.asarray(array[start : start + batch_size], dtype) for array, dtype in zip(arrays, types))


def _records(path: str, split: str, batch_size: int) -> Iterator[Batch]:
    records = Records.open(path)
    total = records.rows(split)
    if not total:
        raise DataError(f"{path}: the split {split} has no rows")
    for start in range(0, total, batch_size):
        dense, categorical, _, *weights = records.numpy(split, start, start + batch_size)
        yield (log_dense(dense), categorical, *weights)


def _log(readers: Sequence[Reader], encoder: Encoder, batch_size: int) -> Iterator[Batch]:
    rows = encoder.lines([], labelled=True)
    for reader in readers:
        line, labelled = 0, None
        for piece in reader.pieces():
            if labelled is None:
                labelled = reader.has_label(piece)
            block = reader.parse(piece, labelled=labelled)
            for bad, what in block.bad:
                raise DataError(f"{reader.where(line + bad)}: {what}; scoring stops, because each line needs a score")
            line += block.lines
            # What is left of the pieces before goes first.
            rows = tuple(np.concatenate(parts) for parts in zip(rows, encoder.block(block)))
            whole = len(rows[0]) - len(rows[0]) % batch_size
            for start in range(0, whole, batch_size):
                yield tuple(array[start : start + batch_size] for array in rows)
            rows = tuple(array[whole:] for array in rows)
    if len(rows[0]):
        yield rows
