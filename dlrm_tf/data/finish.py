"""Second half of `prepare`: scanned shards become train and test shards, keys that get no id leave, the manifest is written."""

import os
from typing import Any, Optional

import numpy as np

from dlrm_tf.config import UNUSED_PLACE
from dlrm_tf.data.admit import Admission, count_ids
from dlrm_tf.data.bad_lines import advised
from dlrm_tf.data.record_files import (
    SPLITS,
    VOCABULARY,
    describe_rows,
    lines_of_test,
    row_dtype,
    write_manifest,
    write_rows,
)
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError
from dlrm_tf.files import atomic_file

_COUNTS = "counts.npy"
_EXAMPLES = 5  # bad lines quoted in the manifest


class Finish:
    """Moves the rows of a finished scan into the data folder; can be run again after it was interrupted."""

    def __init__(self, workspace: Workspace, spec: FeatureSpec, notes: list[dict[str, Any]], vocabulary: Vocabulary):
        """Changes nothing yet.

        Args:
          workspace: where the scanned shards are.
          spec: the columns.
          notes: of all shards, `Scan.notes`.
          vocabulary: the keys, `Scan.vocabulary`.

        Raises:
          DataError: there is no row.
        """
        if not any(note["rows"] for note in notes):
            lines = sum(note["lines"] for note in notes)
            first = next((example for note in notes for example in note["examples"]), "the input is empty")
            raise DataError(f"no good line among {lines:,}: {advised(first)}")
        self.workspace, self.out_dir, self.spec, self.notes, self.vocabulary = (
            workspace,
            workspace.out_dir,
            spec,
            notes,
            vocabulary,
        )
        self.dtype = row_dtype(spec)
        self.out_of_vocabulary = np.sum([note["out_of_vocabulary"] for note in notes], axis=0)
        self.remap: Optional[list[np.ndarray]] = None

    def admit(self, admission: Admission) -> None:
        """Removes keys from the vocabulary and renumbers the others in the same order."""
        counts = np.split(self._count(), np.cumsum(self.vocabulary.sizes)[:-1])
        sets = np.array(self.vocabulary.spaces.key_sets)
        in_sets = [np.sum([counts[f] for f in np.flatnonzero(sets == i)], axis=0) for i in range(max(sets) + 1)]
        admitted = admission.choose(self.vocabulary, in_sets)
        if all(kept.all() for kept in admitted):
            return
        self.vocabulary = self.vocabulary.keep(admitted)
        self.out_of_vocabulary += [count[~kept].sum() for count, kept in zip(counts, admitted)]
        self.remap = [_new_ids(kept) for kept in admitted]

    def _count(self) -> np.ndarray:
        """How often each key of each feature occurs, one after the other; kept on disk: moved shards can't be counted again."""
        path = self.workspace.path(_COUNTS)
        if not os.path.exists(path):
            counts = [np.zeros(size + 1, np.int64) for size in self.vocabulary.sizes]
            for number in range(len(self.notes)):
                rows = np.fromfile(self.workspace.rows_path(number), self.dtype)
                for count, places in zip(counts, self.spec.id_ranges):
                    count += count_ids(rows["categorical"][:, places], len(count) - 1)
            with atomic_file(path) as temporary, open(temporary, "wb") as file:
                np.save(file, np.concatenate([count[:-1] for count in counts]))
        counts_of_all: np.ndarray = np.load(path, allow_pickle=False)
        return counts_of_all

    def write(self, test_fraction: float) -> None:
        """Writes vocabulary and shards, the manifest last.

        Args:
          test_fraction: share of the lines, from the end, that is the test split.
        """
        for split in SPLITS:
            os.makedirs(os.path.join(self.out_dir, split), exist_ok=True)
        self.vocabulary.save(os.path.join(self.out_dir, VOCABULARY))
        shards = self._write_shards(test_fraction)
        missing = np.sum([note["missing"] for note in self.notes], axis=0).tolist()
        counts = {
            "lines": sum(note["lines"] for note in self.notes),
            "bad_lines": sum(note["bad_lines"] for note in self.notes),
            "bad_examples": [example for note in self.notes for example in note["examples"]][:_EXAMPLES],
            "missing": dict(zip((*self.spec.dense_names, *self.spec.categorical_names), missing)),
            "out_of_vocabulary": dict(zip(self.spec.categorical_names, self.out_of_vocabulary.tolist())),
        }
        if self.spec.bags:
            bags = np.sum([note["bags"] for note in self.notes], axis=0)
            names = [name for name in self.spec.categorical_names if name in self.spec.bags]
            counts.update({key: dict(zip(names, bags[:, i].tolist())) for i, key in enumerate(("keys", "truncated"))})
        write_manifest(self.out_dir, self.spec, counts, self.vocabulary, shards)

    def _write_shards(self, test_fraction: float) -> dict[str, list[dict[str, Any]]]:
        lines = sum(note["lines"] for note in self.notes)
        train_lines = lines - lines_of_test(lines, test_fraction)
        shards: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        for number, note in enumerate(self.notes):
            cut = min(max(train_lines, 0), note["lines"])
            train_lines -= cut
            # From lines to rows: bad lines before the cut have no row.
            cut = cut if not note["bad_lines"] else cut - int(np.searchsorted(self.workspace.bad_lines(number), cut))
            source = self.workspace.rows_path(number)
            for split, begin, end in (("train", 0, cut), ("test", cut, note["rows"])):
                if begin == end:
                    continue
                name = f"{split}/{len(shards[split]):05d}.bin"
                target = os.path.join(self.out_dir, *name.split("/"))
                if end - begin < note["rows"] or self.remap:
                    content = self._write_part(source, target, begin, end)
                else:
                    content = {key: note[key] for key in ("rows", "positives", "sha256")}
                    if not os.path.exists(target):
                        os.rename(source, target)
                shards[split].append({"path": name, **content})
            if os.path.exists(source):
                os.unlink(source)
        return shards

    def _write_part(self, source: str, target: str, begin: int, end: int) -> dict[str, Any]:
        """Writes rows `[begin, end)` of a scanned shard, ids remapped."""
        if os.path.exists(target):  # from before an interruption
            return describe_rows(np.fromfile(target, self.dtype))
        rows = np.fromfile(source, self.dtype)[begin:end]
        for places, table in zip(self.spec.id_ranges, self.remap or ()):
            rows["categorical"][:, places] = table[rows["categorical"][:, places]]
        with atomic_file(target) as temporary:
            write_rows(temporary, rows)
        return describe_rows(rows)


def _new_ids(kept: np.ndarray) -> np.ndarray:
    """The new id of every old one, int32 `[size + 2]`: an id that was or now is out of vocabulary becomes the new size."""
    kept = np.append(kept, False)
    ids = np.where(kept, np.cumsum(kept) - 1, kept.sum()).astype(np.int32)
    return np.append(ids, np.int32(UNUSED_PLACE))  # -1, an unused place, is the index of the last entry
