"""write_arrays: a data folder of rows that have their ids already."""

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.features import LARGEST, dense_numbers, recorded
from dlrm_tf.data.inputs import int32_ids
from dlrm_tf.data.record_files import (
    SPLITS,
    VOCABULARY,
    NoKeys,
    describe_rows,
    lines_of_test,
    row_dtype,
    write_manifest,
    write_rows,
)
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.files import StrPath, atomic_dir

_SHARD_BYTES = 21 << 20  # as `prepare` makes them
_SOURCE = "arrays"
_NAMES = ("dense", "categorical", "label", "weights")


def write_arrays(
    out_dir: str,
    batches: Optional[Iterable[Sequence[Any]]],
    arrays: Sequence[Optional[Any]],
    *,
    spec: Optional[FeatureSpec],
    sizes: Optional[Sequence[int]],
    vocabulary: Union[None, Vocabulary, StrPath],
    test_fraction: float,
) -> None:
    """Writes what `Records.from_arrays` is called with; its arguments, `arrays` being dense, categorical, label and weights."""
    if not 0 <= test_fraction < 1:
        raise UsageError(f"test_fraction must be from 0 to below 1. Received {test_fraction}")
    given = [name for name, array in zip(_NAMES, arrays) if array is not None]
    if batches is not None and given:
        raise UsageError(f"wanted either batches or arrays. Received batches and {', '.join(given)}")
    if batches is None:
        missing = [name for name, array in zip(_NAMES[:3], arrays) if array is None]
        if missing:
            raise UsageError(f"wanted dense, categorical and label, or batches of them. Received no {', '.join(missing)}")
        batches = [[array for array in arrays if array is not None]]
    keys = vocabulary if vocabulary is None or isinstance(vocabulary, Vocabulary) else Vocabulary.load(vocabulary)
    if keys is not None and sizes is not None and tuple(sizes) != keys.sizes:
        raise UsageError(f"sizes must be those of the vocabulary, {keys.sizes}. Received {tuple(sizes)}")
    rest = iter(batches)
    first = next(rest, ())
    columns = _columns(first) if spec is None else spec
    if keys is not None and keys.names != columns.categorical_names:
        raise DataError(
            f"{_SOURCE}: wanted a vocabulary of the features {', '.join(columns.categorical_names)}. "
            f"Received one of {', '.join(keys.names)}"
        )
    with atomic_dir(out_dir) as folder:
        writer = _ArraysWriter(folder, columns, keys.sizes if keys is not None else sizes)
        for batch in itertools.chain([first] if first else [], rest):
            writer.write(batch)
        if not writer.rows:
            raise DataError(f"{_SOURCE}: wanted at least one row. Received none")
        if keys is not None:
            keys.save(os.path.join(folder, VOCABULARY))
        writer.finish(keys, test_fraction)


def _columns(batch: Sequence[Any]) -> FeatureSpec:
    """The features of arrays that come without a spec: one id each."""
    shapes = [np.shape(array) for array in batch]
    if len(shapes) != 3 or [len(shape) for shape in shapes[:2]] != [2, 2]:
        raise DataError(
            f"{_SOURCE}: wanted dense [n, d], categorical [n, F] and label [n] (weights need a spec). Received {_shown(shapes)}"
        )
    dense, categorical = (range(1, shape[1] + 1) for shape in shapes[:2])
    return FeatureSpec.of([f"I{i}" for i in dense], [f"C{i}" for i in categorical])


def _shown(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "nothing"


class _ArraysWriter:
    """Writes rows into shards.

    Args:
      folder: where.
      spec: the features.
      sizes: number of ids of each; None where they follow from the ids.

    Attributes:
      rows: written so far.
    """

    def __init__(self, folder: str, spec: FeatureSpec, sizes: Optional[Sequence[int]]):
        features = len(spec.categorical_names)
        if sizes is not None and (len(sizes) != features or min(sizes) < 0):
            raise UsageError(f"sizes must be {features} numbers of ids, one a feature. Received {tuple(sizes)}")
        self.rows = 0
        self._folder, self._spec = folder, spec
        self._sizes = None if sizes is None else np.array(sizes, np.int64)
        self._largest, self._unknown = np.full(features, -1, np.int64), np.zeros(features, np.int64)
        self._parts: list[np.ndarray] = []
        self._shards: list[dict[str, Any]] = []

    def _check_shapes(self, batch: Sequence[Any]) -> None:
        shapes = [np.shape(array) for array in batch]
        d, f, weighted = len(self._spec.dense_names), self._spec.id_columns, self._spec.weighted
        rows = shapes[0][0] if shapes and shapes[0] else 0
        wanted: list[tuple[int, ...]] = [(rows, d), (rows, f), (rows,), *[(rows, f)] * weighted]
        if [shape[:1] if i == 2 and shape[1:] == (1,) else shape for i, shape in enumerate(shapes)] != wanted:
            names = f"dense [n, {d}], categorical [n, {f}], label [n]" + f", weights [n, {f}]" * weighted
            raise DataError(f"{_SOURCE}: row {self.rows} and below: wanted {names}. Received {_shown(shapes)}")

    def write(self, batch: Sequence[Any]) -> None:
        """Adds `(dense, categorical, label)`, with weights where the spec has any; whole shards go to the disk."""
        self._check_shapes(batch)
        rows = np.empty(len(batch[0]), row_dtype(self._spec))
        rows["dense"] = recorded(dense_numbers(batch[0], self._spec.dense_names, _SOURCE, self.rows))
        rows["categorical"] = self._ids(int32_ids(batch[1], _SOURCE))
        label = np.asarray(batch[2]).reshape(-1)
        self._complain((label != 0) & (label != 1), label, "label: wanted 0 or 1")
        rows["label"] = label
        if self._spec.weighted:
            weights = np.asarray(batch[3], np.float64)
            wrong = ~((weights >= 0) & (weights <= LARGEST))
            self._complain(
                wrong.any(1), weights[np.arange(len(rows)), wrong.argmax(1)], "weights: wanted finite numbers from 0 on"
            )
            rows["weights"] = weights
        self.rows += len(rows)
        self._parts.append(rows)
        shard_rows = max(1, _SHARD_BYTES // rows.itemsize)
        while sum(map(len, self._parts)) >= shard_rows:
            held = np.concatenate(self._parts)
            self._parts = [held[shard_rows:].copy()]
            self._save(held[:shard_rows])

    def _ids(self, ids: np.ndarray) -> np.ndarray:
        """Checks ids, and counts those that are out of vocabulary."""
        names, ranges = self._spec.categorical_names, self._spec.id_ranges
        for f, (name, places) in enumerate(zip(names, ranges)):
            least = np.full(places.stop - places.start, UNUSED_PLACE if name in self._spec.bags else 0)
            least[0] = 0  # a bag has a key
            most = np.iinfo(np.int32).max - 1 if self._sizes is None else self._sizes[f]
            part = ids[:, places]
            wrong = (part < least) | (part > most)
            what = f"{name}: wanted ids from 0 to {most:,}" + f", or {UNUSED_PLACE} in an unused place" * (
                name in self._spec.bags
            )
            self._complain(wrong.any(1), part[np.arange(len(part)), wrong.argmax(1)], what)
            self._largest[f] = max(self._largest[f], part.max(initial=-1))
            if self._sizes is not None:
                self._unknown[f] += np.count_nonzero(part == self._sizes[f])
        return ids

    def _complain(self, wrong: Any, values: np.ndarray, what: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(f"{_SOURCE}: row {self.rows + row}, {what}. Received {values[row]}")

    def _save(self, rows: np.ndarray) -> None:
        name = f"{len(self._shards):05d}.bin"
        write_rows(os.path.join(self._folder, name), rows)
        self._shards.append({"path": name, **describe_rows(np.ascontiguousarray(rows))})

    def finish(self, keys: Optional[Vocabulary], test_fraction: float) -> None:
        """Writes the last rows, divides the shards between train and test, and writes the manifest."""
        last = np.concatenate(self._parts)
        if len(last):
            self._save(last)
        train_rows = self.rows - lines_of_test(self.rows, test_fraction)
        shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            os.mkdir(os.path.join(self._folder, split))
        for shard in self._shards:
            cut = min(max(train_rows, 0), shard["rows"])
            train_rows -= cut
            self._divide(shard, cut, shards)
        sizes = tuple((self._largest + 1 if self._sizes is None else self._sizes).tolist())
        names = self._spec.categorical_names
        counts: dict[str, Any] = {
            "lines": self.rows,
            "bad_lines": 0,
            "bad_examples": [],
            # Ids and recorded numbers do not tell.
            "missing": dict.fromkeys((*self._spec.dense_names, *names)),
            "out_of_vocabulary": dict(zip(names, self._unknown.tolist())),
        }
        write_manifest(self._folder, self._spec, counts, keys or NoKeys(sizes), shards)

    def _divide(self, shard: dict[str, Any], cut: int, shards: dict[str, list[dict[str, Any]]]) -> None:
        """Moves a shard to its split; the one across the end of train is written again in two."""
        source = os.path.join(self._folder, shard["path"])
        parts = [("train", slice(0, cut)), ("test", slice(cut, shard["rows"]))]
        parts = [(split, part) for split, part in parts if part.start < part.stop]
        for split, part in parts:
            name = f"{split}/{len(shards[split]):05d}.bin"
            target = os.path.join(self._folder, *name.split("/"))
            if len(parts) == 1:
                os.rename(source, target)
                shards[split].append({**shard, "path": name})
            else:
                rows = np.fromfile(source, row_dtype(self._spec))[part]
                write_rows(target, rows)
                shards[split].append({"path": name, **describe_rows(rows)})
        if len(parts) == 2:
            os.unlink(source)
