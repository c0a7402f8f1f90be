"""The files of a data folder: the layout of rows, the manifest, and which lines are the test split."""

import hashlib
import json
import os
from fractions import Fraction
from typing import Any, NamedTuple, Union

import numpy as np

from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.files import write_file

FORMAT, FORMAT_WITH_BAGS = 1, 2  # what has no bags stays readable for earlier versions
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.npz"
SPLITS = ("train", "test")
# 21 MB of Criteo's rows: what a killed run can lose at most. Longer shards would slow the reader down, because TensorFlow reads
# what it skips at the start of a file: rows of bags, 912 bytes with MLPerf's hot sizes, are read 1.4 times as fast from shards of
# 21 MB as from shards of as many lines.
SHARD_LINES = 1 << 17


class NoKeys(NamedTuple):
    """In place of a vocabulary, where records were made from ids whose keys are not known.

    Attributes:
      sizes: number of ids of each feature.
      fingerprint: none.
    """

    sizes: tuple[int, ...]
    fingerprint: str = ""


def row_dtype(spec: FeatureSpec) -> np.dtype:
    """Layout of one row, little-endian.

    `label` float32, `dense` float32 `[d]`, `categorical` int32 `[id_columns]`, and where the spec is weighted `weights` float32
    `[id_columns]`.
    """
    fields = [("label", "<f4"), ("dense", "<f4", (len(spec.dense_columns),)), ("categorical", "<i4", (spec.id_columns,))]
    return np.dtype(fields + [("weights", "<f4", (spec.id_columns,))] if spec.weighted else fields)


def lines_of_test(lines: int, test_fraction: float) -> int:
    """How many lines, bad ones counted, the test split has: the last `floor(lines * test_fraction)`.

    1/7 gives upstream's N // 7 exactly: a float is taken as the simple fraction nearest to it.
    """
    return int(lines * Fraction(test_fraction).limit_denominator(10**6))


def write_rows(path: str, rows: np.ndarray) -> None:
    """Writes rows to a file.

    Args:
      path: the file.
      rows: `[n]` of `row_dtype`.

    Raises:
      OSError: the file can't be written; it has errno and the file's name.
    """
    # Not ndarray.tofile: on a full disk its OSError has neither errno nor the file's name.
    try:
        with open(path, "wb") as file:
            file.write(rows.data)
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from e


def write_manifest(
    folder: str,
    spec: FeatureSpec,
    counts: dict[str, Any],
    vocabulary: Union[Vocabulary, NoKeys],
    shards: dict[str, list[dict[str, Any]]],
) -> None:
    """Writes manifest.json, which makes the folder a data set: everything else must be there already.

    Args:
      folder: the data folder.
      spec: the columns.
      counts: `lines`, `bad_lines`, `bad_examples`, `missing` and `out_of_vocabulary` (by feature; None where not known), and of
        bags `keys` and `truncated`.
      vocabulary: what the ids belong to; or how many ids there are.
      shards: by split, the fields of `Shard`.
    """
    totals = {key: {split: sum(shard[key] for shard in shards[split]) for split in SPLITS} for key in ("rows", "positives")}
    manifest = {
        "format": FORMAT_WITH_BAGS if spec.bags else FORMAT,
        "spec": spec.to_dict(),
        "counts": {**counts, **totals},
        "vocabulary": {"fingerprint": vocabulary.fingerprint, "sizes": vocabulary.sizes},
        "shards": shards,
    }
    write_file(os.path.join(folder, MANIFEST), json.dumps(manifest, indent=1))


def describe_rows(rows: np.ndarray) -> dict[str, Any]:
    """`rows`, `positives` and `sha256` of a shard."""
    positives = int(rows["label"].sum(dtype=np.float64))
    return {"rows": len(rows), "positives": positives, "sha256": hashlib.sha256(rows.data).hexdigest()}
