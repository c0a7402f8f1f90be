"""prepare: raw Criteo TSV (or another log with a feature spec) to records with upstream's ids and split.

Upstream: MindSpore models, research/recommend/dlrm/src/preprocess_data.py. An id is the order of a key's first
appearance in its column over all good lines; the split is by line number, bad lines counted.
"""

import dataclasses
import datetime
import os
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

from dlrm_tf.data.admit import Admission, max_ids_by_feature
from dlrm_tf.data.bad_lines import MAX_SHARE
from dlrm_tf.data.days import day_number
from dlrm_tf.data.local_engine import LocalEngine
from dlrm_tf.data.pipeline import bounded_rows
from dlrm_tf.data.readers.open import open_readers
from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.record_files import MANIFEST, SHARD_LINES, row_dtype
from dlrm_tf.data.records import Records
from dlrm_tf.data.scan import Rules
from dlrm_tf.data.spark.engine import SparkEngine
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.vocabulary_check import check_features
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.files import StrPath


def prepare(
    inputs: Any,
    out_dir: StrPath,
    *,
    spec: FeatureSpec = CRITEO,
    vocabulary: Optional[Vocabulary] = None,
    grow: bool = False,
    min_count: int = 1,
    test_fraction: float = 1 / 7,
    on_bad_line: str = "skip",
    shard_lines: Optional[int] = None,
    threads: Optional[int] = None,
    quiet: bool = True,
    max_ids: Union[None, int, Mapping[str, int]] = None,
    last_seen: Union[None, str, datetime.date] = None,
    engine: Optional[SparkEngine] = None,
    max_bad_share: float = MAX_SHARE,
) -> Records:
    """Makes the data folder `out_dir`; after an interruption the same call resumes after the last finished shard.

    Memory: a few shards and the vocabulary (up to 40 bytes a key), however many lines there are.

    Args:
      inputs: one file or several, taken in order as if they were one: text, plain or compressed with gzip, zstd, bz2 or xz;
        Parquet; Arrow (Feather); folders, patterns and URLs (see `readers.names.expand`); `-`, standard input. Or rows in memory:
        a pandas or polars DataFrame, an Arrow table, a dict of columns, or an iterable of such tables, of which one at a time is
        held. Standard input and rows in memory are read once: an interrupted call starts again.
      out_dir: the folder to make; must not exist, be empty, or hold the same call's interrupted work.
      spec: the columns, and which of them are hashed or share a table: as in `vocabulary`, if it says nothing about that.
      vocabulary: a fixed vocabulary; keys it does not have get the out-of-vocabulary id. None makes one from the lines.
      grow: append the keys that `vocabulary` does not have; ids it has stay.
      min_count: keys that occur fewer times go out of vocabulary (keys of `vocabulary` stay, and so do the buckets of hashed
        features). 1, upstream's rule, keeps all.
      test_fraction: share of the lines, from the end, that is the test split.
      on_bad_line: `"skip"` counts lines that are not as `spec` says; `"stop"` raises at the first.
      shard_lines: lines a shard; None is 131,072, or with bags as many as 21 MB hold.
      threads: of parsing and look-up, at least 1; None is one for each CPU.
      quiet: show no progress.
      max_ids: most keys of every feature, or by name of some: the most frequent ones stay, of equally frequent ones those that
        appeared first (keys of `vocabulary` stay and count towards it). None keeps all.
      last_seen: the day of the log, a date or YYYY-MM-DD. It is kept in the vocabulary for every key that occurs
        (`Vocabulary.last_seen`); keys of `vocabulary` that do not occur keep the day they had. None notes no day.
      engine: where the work is done; None is this process. The data folder has the same bytes.
      max_bad_share: the most bad lines that `"skip"` passes over, as a share of all lines, from 0 to 1. It stops when a
        larger share of the lines so far is bad, looking after each shard and at the end; fewer than ten bad lines pass
        whatever the share, unless it is 0.

    Raises:
      DataError: the input or the folder is not as it should be.
      UsageError: an argument is out of range, or arguments exclude each other.
      SparkError: Spark does not start, or gave up; what is finished stays for the next call.
    """
    out_dir = os.fspath(out_dir)
    if not out_dir:
        raise UsageError("out_dir must be a folder to make. Received ''")
    if not 0 <= test_fraction < 1:
        raise UsageError(f"test_fraction must be from 0 to below 1. Received {test_fraction}")
    at = _engine(engine, threads)
    _check_grow(vocabulary, grow, min_count, max_ids)
    spec = _checked_spec(spec, vocabulary, out_dir)
    known = Vocabulary.empty(spec.id_spaces) if vocabulary is None else vocabulary
    day = None if last_seen is None else day_number(last_seen, "last_seen")
    admission = Admission(min_count, max_ids_by_feature(max_ids, spec), known.sizes, day)
    lines = bounded_rows(SHARD_LINES, spec, row_dtype(spec).itemsize) if shard_lines is None else shard_lines
    rules = Rules(spec, grow or vocabulary is None, lines, on_bad_line, max_bad_share)
    readers, workspace = open_readers(inputs, spec), Workspace(out_dir)
    at.check(readers, workspace)
    job = _job(readers, rules, vocabulary, grow, admission, test_fraction)
    resume = all(reader.resumable for reader in readers)
    with at.started(), Workspace.open(out_dir, {**job, **at.job}, resume=resume) as workspace:
        # With a manifest there, only the removal of the work folder was interrupted.
        if not os.path.exists(os.path.join(out_dir, MANIFEST)):
            try:
                finish = at.scan(workspace, readers, known, rules, admission=admission, quiet=quiet)
            except BaseException as e:
                # After a DataError the input must change first, and rows in memory can't be read again: nothing can be resumed.
                if isinstance(e, DataError) or not resume:
                    workspace.remove()
                raise
            finish.write(test_fraction)
        workspace.remove()
    return Records.open(out_dir)


def _engine(engine: Optional[SparkEngine], threads: Optional[int]) -> Union[SparkEngine, LocalEngine]:
    if engine is None:
        return LocalEngine(threads)
    if threads is not None:
        raise UsageError(f"threads must be None with an engine, whose cores are set there. Received {threads}")
    return engine


def _check_grow(
    vocabulary: Optional[Vocabulary], grow: bool, min_count: int, max_ids: Union[None, int, Mapping[str, int]]
) -> None:
    """Raises UsageError where arguments exclude each other."""
    if grow and vocabulary is None:
        raise UsageError("grow needs a vocabulary to grow from. Received none")
    fixed = vocabulary is not None and not grow
    if fixed and min_count > 1:
        raise UsageError(f"min_count must be 1 with a fixed vocabulary (grow appends to it). Received {min_count}")
    if fixed and max_ids is not None:
        raise UsageError(f"max_ids must be None with a fixed vocabulary (grow appends to it). Received {max_ids}")


def _checked_spec(spec: FeatureSpec, vocabulary: Optional[Vocabulary], out_dir: str) -> FeatureSpec:
    """The spec, with the vocabulary's hashed features and tables; raises DataError where it has others."""
    if spec.label_column is None:
        raise DataError("feature spec: wanted a label column, to train with the rows. Received none")
    if vocabulary is None:
        return spec
    check_features(spec, vocabulary, out_dir)
    mine, wanted = spec.id_spaces.to_dict(), vocabulary.spaces.to_dict()
    if mine and mine != wanted:
        raise DataError(
            f"feature spec: wanted the vocabulary's hashed features and tables, {wanted or 'none'}, which can't grow or change. "
            f"Received {mine}"
        )
    return dataclasses.replace(spec, **wanted)


def _job(
    readers: Sequence[Reader],
    rules: Rules,
    vocabulary: Optional[Vocabulary],
    grow: bool,
    admission: Admission,
    test_fraction: float,
) -> dict[str, Any]:
    """What must be the same for an interrupted job to be resumed, JSON values."""
    job: dict[str, Any] = {
        "inputs": [reader.identity() for reader in readers],
        "spec": rules.spec.to_dict(),
        "vocabulary": vocabulary.fingerprint if vocabulary is not None else None,
        "grow": grow,
        "min_count": admission.min_count,
        "test_fraction": test_fraction,
        "on_bad_line": rules.on_bad_line,
        "shard_lines": rules.shard_lines,
    }
    # What came later is there only where it is used: jobs of earlier versions are resumed.
    if rules.max_bad_share != MAX_SHARE:
        job["max_bad_share"] = rules.max_bad_share
    if any(most is not None for most in admission.max_ids):
        job["max_ids"] = admission.max_ids
    if admission.day is not None:
        job["last_seen"] = admission.day
    return job
