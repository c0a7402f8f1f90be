"""describe_records: what is in a prepared data folder, as lines of text (`dlrm-tf inspect DIR`)."""

import os
from typing import Any

from dlrm_tf.data.record_files import MANIFEST, SPLITS
from dlrm_tf.data.records import Records
from dlrm_tf.errors import DataError, reason
from dlrm_tf.files import StrPath


def describe_records(folder: StrPath, *, features: bool = True) -> list[str]:
    """Counts, share of positives and, for each feature, cardinality and shares of missing cells and out-of-vocabulary keys.

    Of bags also the mean number of keys of a row, and the share of rows that had more of them than are kept.

    Args:
      folder: a data folder that `prepare` made.
      features: also a line for each feature.

    Returns:
      Lines of text.

    Raises:
      DataError: not a finished data folder.
    """
    records = Records.open(folder)
    try:
        return _lines(os.fspath(folder), records, records.manifest["counts"], features)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        raise DataError(f"{records.folder}: damaged counts in {MANIFEST} ({reason(e)}); prepare the data again") from None


def _lines(folder: str, records: Records, counts: dict[str, Any], features: bool) -> list[str]:
    rows = sum(counts["rows"].values())
    lines = [f"{folder}: {rows:,} rows from {counts['lines']:,} lines, {counts['bad_lines']:,} bad lines skipped"]
    lines += [f"  bad: {example}" for example in counts["bad_examples"]]
    for split in SPLITS:
        share = counts["positives"][split] / max(counts["rows"][split], 1)
        shards = len(records.shards[split])
        lines.append(f"  {split:<6}{counts['rows'][split]:>14,} rows, {share:.2%} positive, {shards} shards")
    unknown = sum(counts["out_of_vocabulary"].values())
    bag_keys, truncated = counts.get("keys", {}), counts.get("truncated", {})
    keys = {name: bag_keys.get(name, rows) for name in records.spec.categorical_names}
    cells = sum(keys.values())
    vocabulary = f"{records.num_ids:,} categories in {len(records.sizes)} features"
    lines.append(f"  {vocabulary}, {unknown:,} {'keys' if bag_keys else 'cells'} out of vocabulary ({unknown / cells:.2%})")
    lines.append(f"  vocabulary {records.manifest['vocabulary']['fingerprint'] or 'none: the records were made from ids'}")
    spaces = records.spec.id_spaces.to_dict()
    hashed = ", ".join(f"{name} into {buckets:,}" for name, buckets in spaces.get("hashed", {}).items())
    lines += [f"  hashed: {hashed}"] if hashed else []
    for field in ("shared", "unified"):
        lines += [f"  {field} table {table}: {', '.join(names)}" for table, names in spaces.get(field, {}).items()]
    if features:
        bag_heads = f"{'keys a row':>12}{'truncated':>12}" if bag_keys else ""
        lines.append(f"  {'feature':<12}{'categories':>14}{'missing':>12}{'OOV':>12}{bag_heads}")
        sizes = dict(zip(records.spec.categorical_names, records.sizes))
        for name in (*records.spec.dense_names, *records.spec.categorical_names):
            size = f"{sizes[name]:,}" if name in sizes else "dense"
            oov = f"{counts['out_of_vocabulary'][name] / keys[name]:.2%}" if name in sizes else ""
            missing = counts["missing"][name]
            # Not known of data that came from TFRecord files (0.1.0).
            missing = "?" if missing is None else f"{missing / rows:.2%}"
            bag = f"{bag_keys[name] / rows:>12.2f}{truncated[name] / rows:>12.2%}" if name in bag_keys else ""
            lines.append(f"  {name:<12}{size:>14}{missing:>12}{oov:>12}{bag}".rstrip())
    return lines
