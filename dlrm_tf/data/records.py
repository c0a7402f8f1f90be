"""Records: a prepared data set on disk, fixed-length little-endian rows in shards, and the tf.data pipeline over them.

Layout of a folder:
    manifest.json     written last: a folder without it is not a data set
    vocabulary.npz    see dlrm_tf.data.vocabulary; not there where the records were made from ids without keys
    train/00000.bin … test/00000.bin …    rows, see `record_files.row_dtype`: label, dense (raw values), ids; 160 bytes for Criteo
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from dlrm_tf.data.arrays import write_arrays
from dlrm_tf.data.pipeline import build
from dlrm_tf.data.record_files import FORMAT, FORMAT_WITH_BAGS, MANIFEST, SPLITS, VOCABULARY, row_dtype
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, reason
from dlrm_tf.files import StrPath, sha256_file

# The split that `Records.with_validation` cuts off the end of `train`; no folder has it.
VALIDATION = "validation"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of rows.

    Attributes:
      path: relative to the data folder, with `/`.
      rows: number of rows.
      positives: number of rows with label 1.
      sha256: of the whole file, hex.
    """

    path: str
    rows: int
    positives: int
    sha256: str


class Piece(NamedTuple):
    """Neighbouring rows of one split in one file.

    Attributes:
      path: the file.
      first: number of the first row, in the file.
      rows: number of rows.
      file_rows: number of rows of the whole file.
    """

    path: str
    first: int
    rows: int
    file_rows: int


class Records:
    """A prepared data set, opened for reading.

    Example:
      records = Records.open("data")
      model.fit(records.dataset("train", 2048, shuffle_seed=1), validation_data=records.dataset("test", 8192))

    Attributes:
      folder: where it is.
      manifest: the content of manifest.json.
      spec: the columns of the log it was made from.
      sizes: number of keys of each categorical feature; an id equal to it means out of vocabulary.
    """

    def __init__(self, folder: str, manifest: dict[str, Any]):
        """Use `Records.open`: it checks the manifest, which this does not.

        Args:
          folder: where the data is.
          manifest: the content of its manifest.json.
        """
        self.folder = folder
        self.manifest = manifest
        self.spec = FeatureSpec.from_dict(manifest["spec"])
        self.sizes = tuple(int(size) for size in manifest["vocabulary"]["sizes"])
        self.shards = {split: tuple(Shard(**shard) for shard in manifest["shards"][split]) for split in SPLITS}
        self._validation_rows = 0
        self.dtype = row_dtype(self.spec)

    @classmethod
    def open(cls, folder: Union[StrPath, "Records"]) -> "Records":
        """Reads the manifest and checks that every shard is there and has its size (not its sha256: `verify` does).

        Args:
          folder: a data folder that `prepare` made; opened `Records` are returned as they are.

        Raises:
          DataError: not a prepared folder, an interrupted one, another format, or a shard is missing or cut.
        """
        if isinstance(folder, Records):
            return folder
        folder = os.fspath(folder)
        path = os.path.join(folder, MANIFEST)
        if not os.path.isfile(path):
            raise DataError(
                f"{folder}: no {MANIFEST}: not a prepared data folder, or not finished (run: dlrm-tf prepare TSV -o {folder})"
            )
        try:
            with open(path, encoding="utf-8") as file:
                manifest = json.load(file)
            if manifest["format"] not in (FORMAT, FORMAT_WITH_BAGS):
                raise DataError(
                    f"{path}: wanted records of format {FORMAT} or {FORMAT_WITH_BAGS}. Received {manifest['format']!r}"
                )
            records = cls(folder, manifest)
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            if isinstance(e, DataError):
                raise
            raise DataError(f"{path}: damaged manifest ({reason(e)})") from None
        if min(records.sizes, default=0) < 0:
            raise DataError(f"{path}: damaged manifest (vocabulary sizes {records.sizes})")
        if len(records.sizes) != len(records.spec.categorical_columns):
            raise DataError(
                f"{path}: wanted {len(records.spec.categorical_columns)} vocabulary sizes. Received {len(records.sizes)}"
            )
        for shard in (shard for split in SPLITS for shard in records.shards[split]):
            if not isinstance(shard.rows, int) or shard.rows < 0 or not isinstance(shard.path, str):
                raise DataError(
                    f"{path}: wanted whole numbers of rows and names of files. Received {shard.rows!r} of {shard.path!r}"
                )
            # A manifest names files of its own folder only.
            if os.path.isabs(shard.path) or ".." in shard.path.split("/"):
                raise DataError(f"{path}: shard {shard.path!r} is outside the folder")
            where = os.path.join(folder, shard.path)
            if not os.path.isfile(where):
                raise DataError(f"{where}: missing, but the manifest lists it; prepare the data again")
            wanted, got = shard.rows * records.dtype.itemsize, os.path.getsize(where)
            if wanted != got:
                raise DataError(f"{where}: wanted {wanted} bytes ({shard.rows} rows). Received {got}; prepare the data again")
        return records

    @classmethod
    def from_arrays(
        cls,
        out_dir: StrPath,
        batches: Optional[Iterable[Sequence[Any]]] = None,
        *,
        dense: Optional[Any] = None,
        categorical: Optional[Any] = None,
        label: Optional[Any] = None,
        weights: Optional[Any] = None,
        spec: Optional[FeatureSpec] = None,
        sizes: Optional[Sequence[int]] = None,
        vocabulary: Union[None, Vocabulary, StrPath] = None,
        test_fraction: float = 1 / 7,
    ) -> "Records":
        """Makes a data folder of rows that have their ids already; it appears whole or not at all.

        Without a vocabulary the folder has no keys: training, evaluation and export take it, raw rows can't be looked up.

        Args:
          out_dir: the folder to make; it must not exist.
          batches: instead of the next four the rows as an iterable of `(dense, categorical, label)`, or with weights after them,
            as `numpy` gives them; each is read once, and one at a time is held.
          dense: numbers `[n, d]`, raw, as in a log; NaN where missing.
          categorical: whole numbers `[n, id_columns]`, from 0; a feature's size is the id of what is out of vocabulary, -1 an
            unused place of a bag.
          label: 0 or 1, `[n]` or `[n, 1]`.
          weights: numbers from 0 on, `[n, id_columns]`, of keys that have any.
          spec: names and bags of the features; None names them `I1 …` and `C1 …`, one id each.
          sizes: number of ids of each feature. None: as the vocabulary has, or else one more than the largest id of each.
          vocabulary: what the ids belong to, or its file; it is copied.
          test_fraction: share of the rows, from the end, that is the test split.

        Raises:
          DataError: arrays that do not fit each other, or a value that its array can't have; names row and column.
          FileExistsError: `out_dir` is there.
          UsageError: arguments that exclude each other, or out of range.
        """
        write_arrays(
            os.fspath(out_dir),
            batches,
            (dense, categorical, label, weights),
            spec=spec,
            sizes=sizes,
            vocabulary=vocabulary,
            test_fraction=test_fraction,
        )
        return cls.open(out_dir)

    @property
    def has_keys(self) -> bool:
        """Whether the folder has a vocabulary; not where it was made from ids alone (`from_arrays`)."""
        return bool(self.manifest["vocabulary"]["fingerprint"])

    def vocabulary(self) -> Vocabulary:
        """The vocabulary the ids belong to.

        Raises:
          DataError: there is none, the file is damaged, or is not the one the manifest names.
        """
        if not self.has_keys:
            raise DataError(f"{self.folder}: wanted records with a vocabulary. Received ones made from ids, which have no keys")
        path = os.path.join(self.folder, VOCABULARY)
        vocabulary = Vocabulary.load(path)
        if vocabulary.fingerprint != self.manifest["vocabulary"]["fingerprint"]:
            raise DataError(
                f"{path}: wanted the vocabulary these records were made with. Received fingerprint {vocabulary.fingerprint}"
            )
        return vocabulary

    def with_validation(self, rows: int) -> "Records":
        """The same data with a third split: `validation` is the last `rows` rows of `train`, which then ends before them.

        Nothing is written: the rows stay where they are. They are those nearest in time to the test split.

        Args:
          rows: number of validation rows; 0 gives no such split.

        Raises:
          DataError: more rows than `train` has.
        """
        total = sum(shard.rows for shard in self.shards["train"])
        if not 0 <= rows <= total:
            raise DataError(f"{self.folder}: wanted validation rows among the {total} of train. Received {rows}")
        view = Records(self.folder, self.manifest)
        view._validation_rows = rows
        return view

    def rows(self, split: str) -> int:
        """Number of rows of `train`, `validation` (0 without `with_validation`) or `test`."""
        return sum(piece.rows for piece in self.pieces(split))

    def pieces(self, split: str) -> list["Piece"]:
        """Where the rows of a split lie, in the order of the log.

        Args:
          split: `train`, `validation` or `test`.

        Raises:
          DataError: no such split.
        """
        if split not in (*SPLITS, VALIDATION):
            raise DataError(f"{self.folder}: wanted one of the splits {', '.join(SPLITS)}. Received {split!r}")
        shards = self.shards["test" if split == "test" else "train"]
        total = sum(shard.rows for shard in shards)
        cut = total if split == "test" else total - self._validation_rows
        first, last = (cut, total) if split == VALIDATION else (0, cut)
        found, at = [], 0
        for shard in shards:
            begin, end = max(first - at, 0), min(last - at, shard.rows)
            if begin < end:
                found.append(Piece(os.path.join(self.folder, shard.path), begin, end - begin, shard.rows))
            at += shard.rows
        return found

    @property
    def num_ids(self) -> int:
        """Ids of all tables, those of a shared one counted once."""
        return sum(dict(zip(self.spec.id_spaces.tables, self.sizes)).values())

    def config_fields(self) -> dict[str, Any]:
        """The fields of a `DLRMConfig` that the data decides, by name: for `dataclasses.replace`."""
        fields: dict[str, Any] = {"categorical_feature_sizes": self.sizes, "dense_dim": len(self.spec.dense_columns)}
        tables = self.spec.id_spaces.tables
        if len(set(tables)) < len(tables):
            fields["feature_tables"] = tables
        if not self.spec.bags:
            return fields
        poolings = {bag.pooling for bag in self.spec.bags.values()}
        pooling = poolings.pop() if len(poolings) == 1 else self.spec.poolings
        return {**fields, "hot_sizes": self.spec.hot_sizes, "pooling": pooling, "weighted": self.spec.weighted}

    def numpy(self, split: str, start: int = 0, stop: Optional[int] = None) -> tuple[np.ndarray, ...]:
        """Rows `[start, stop)` of a split, in the order of the log.

        Args:
          split: `train`, `validation` or `test`.
          start: number of the first row.
          stop: number of the row after the last; None is the end of the split, as is any number beyond it.

        Returns:
          `(dense float32 [n, d], categorical int32 [n, id_columns], label float32 [n, 1])`, and where keys have weights after
          them `weights float32 [n, id_columns]`; dense values are raw: `features.log_dense` makes of them what a model takes.

        Raises:
          DataError: no such split, not a range of its rows, or a file was cut meanwhile.
        """
        total = self.rows(split)
        stop = total if stop is None else min(stop, total)
        if not 0 <= start <= max(stop, 0):
            raise DataError(f"{split}: wanted a range of its {total} rows. Received [{start}, {stop})")
        parts = [np.empty(0, self.dtype)]
        first = 0
        for piece in self.pieces(split):
            low, high = max(start - first, 0), min(stop - first, piece.rows)
            if low < high:
                with open(piece.path, "rb") as file:
                    file.seek((piece.first + low) * self.dtype.itemsize)
                    parts.append(np.fromfile(file, self.dtype, high - low))
                if len(parts[-1]) < high - low:  # it was whole when the folder was opened
                    wanted = f"rows {piece.first + low} to {piece.first + high}"
                    raise DataError(f"{piece.path}: wanted {wanted}. Received {len(parts[-1])}: the file was cut meanwhile")
            first += piece.rows
        rows = np.concatenate(parts)
        arrays = rows["dense"].copy(), rows["categorical"].copy(), rows["label"][:, None].copy()
        return (*arrays, rows["weights"].copy()) if self.spec.weighted else arrays

    def dataset(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle_seed: Optional[int] = None,
        repeat: bool = False,
        drop_remainder: bool = False,
        worker: tuple[int, int] = (0, 1),
        start_batch: Any = 0,
        share: str = "rows",
    ) -> Any:
        """A `tf.data.Dataset` of `({"dense": float32 [B, d], "categorical": int32 [B, id_columns]}, label float32 [B, 1])`.

        `dense` is what the model takes: the logarithm is taken; data without dense features has none. Where keys have weights,
        `"weights": float32 [B, id_columns]` is a further feature.

        Args:
          split: `train`, `validation` or `test`.
          batch_size: rows a batch, B.
          shuffle_seed: order of the rows: None is the order of the log; a number gives the same order each time it is given, and
            with `repeat` another one in every epoch.
          repeat: epoch after epoch, without end.
          drop_remainder: leave out a last batch of fewer rows.
          worker: `(index, count)`: this worker's share of the rows; the shares of all workers are disjoint and cover all rows.
          start_batch: begin at this batch (counted from the start of the first epoch), as if the earlier ones had been read:
            for resuming in the middle. A number, or an integer tensor (with `repeat` only).
          share: what a worker gets: `"rows"`, neighbouring rows, the same number to a difference of one, for workers that step
            together; `"files"`, whole shards, every count-th, for workers that hold their own files.

        Raises:
          DataError: an argument is out of range.
        """
        return build(
            self,
            split,
            batch_size,
            shuffle_seed=shuffle_seed,
            repeat=repeat,
            drop_remainder=drop_remainder,
            worker=worker,
            start_batch=start_batch,
            share=share,
        )

    def verify(self) -> None:
        """Reads every shard and the vocabulary whole, and compares them with what the manifest says.

        Raises:
          DataError: a file is not what `prepare` wrote.
        """
        for split in SPLITS:
            for shard in self.shards[split]:
                path = os.path.join(self.folder, shard.path)
                sha256 = sha256_file(path)
                if sha256 != shard.sha256:
                    raise DataError(f"{path}: wanted sha256 {shard.sha256}. Received {sha256}; prepare the data again")
        if self.has_keys:
            self.vocabulary()
