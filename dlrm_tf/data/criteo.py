"""prepare: raw Criteo TSV (or another log with a feature spec) to records, vocabulary and manifest, as upstream numbers them."""

import hashlib
import json
import os

import numpy as np

from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.records import FORMAT, MANIFEST, SPLITS, VOCABULARY, Records, row_dtype
from dlrm_tf.data.spec import CRITEO
from dlrm_tf.data.vocabulary import FeatureKeys, Vocabulary
from dlrm_tf.files import atomic_dir


def prepare(tsv_paths, out_dir, spec=CRITEO, vocabulary=None, test_fraction=1 / 7, quiet=True):
    if isinstance(tsv_paths, (str, os.PathLike)):
        tsv_paths = [tsv_paths]
    features = [FeatureKeys() for _ in spec.categorical_names]
    dtype = row_dtype(spec)
    parts, positions, bad, lines = [], [], 0, 0
    for path in tsv_paths:
        with open(path, "rb") as f:
            rest = b""
            while True:
                text = f.read(4 << 20)
                if not text:
                    chunk, rest = rest, b""
                else:
                    cut = text.rfind(b"\n") + 1
                    chunk, rest = rest + text[:cut], text[cut:]
                if chunk:
                    b = parse_block(chunk, spec)
                    rows = np.empty(len(b.label), dtype)
                    rows["label"], rows["dense"] = b.label, b.dense
                    for i, feature in enumerate(features):
                        if vocabulary is None:
                            rows["categorical"][:, i] = feature.assign(b.keys[i], b.empty[i], b.odd[i])
                        else:
                            f_ = vocabulary.feature(spec.categorical_names[i])
                            ids = f_.find(b.keys[i], b.empty[i], b.odd[i])
                            rows["categorical"][:, i] = np.where(ids < 0, f_.size, ids)
                    parts.append(rows)
                    positions.append(lines + b.position)
                    lines += b.lines
                    bad += len(b.bad)
                if not text:
                    break
    rows, pos = np.concatenate(parts), np.concatenate(positions)
    cut = np.searchsorted(pos, lines - lines // 7)
    vocabulary = vocabulary or Vocabulary(list(zip(spec.categorical_names, features)))
    with atomic_dir(out_dir) as tmp:
        shards, counts = {}, {"lines": lines, "bad_lines": bad, "splits": {}}
        for split, part in zip(SPLITS, (rows[:cut], rows[cut:])):
            os.makedirs(os.path.join(tmp, split))
            shards[split] = []
            for k in range(0, len(part), 1 << 20):
                data = part[k : k + (1 << 20)].tobytes()
                name = f"{split}/{k >> 20:05d}.bin"
                with open(os.path.join(tmp, name), "wb") as f:
                    f.write(data)
                shards[split].append(
                    {"path": name, "rows": len(data) // dtype.itemsize, "sha256": hashlib.sha256(data).hexdigest()}
                )
            counts["splits"][split] = {"rows": len(part), "positives": int(part["label"].sum())}
        vocabulary.save(os.path.join(tmp, VOCABULARY))
        with open(os.path.join(tmp, MANIFEST), "w") as f:
            json.dump(
                {
                    "format": FORMAT,
                    "spec": spec.to_dict(),
                    "counts": counts,
                    "vocabulary": {"fingerprint": vocabulary.fingerprint, "sizes": vocabulary.sizes},
                    "shards": shards,
                },
                f,
                indent=1,
            )
    return Records.open(out_dir)
