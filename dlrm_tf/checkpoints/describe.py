"""`describe_checkpoint`, which is what `dlrm-tf inspect` shows: what is in a checkpoint, a weights file or a vocabulary."""

import os
from typing import Any

from dlrm_tf.checkpoints.dlrm_checkpoint import open_checkpoint
from dlrm_tf.checkpoints.file_sha256 import KNOWN, known_sha256
from dlrm_tf.checkpoints.infer_config import infer_config
from dlrm_tf.checkpoints.names import assign
from dlrm_tf.checkpoints.tensor_info import TensorInfo
from dlrm_tf.data.days import describe_days
from dlrm_tf.data.key_file import is_key_file
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import CheckpointError
from dlrm_tf.files import StrPath, sha256_file
from dlrm_tf.weights.hdf5 import SIGNATURE
from dlrm_tf.weights.layout import weight_shapes
from dlrm_tf.weights.reader import WeightsReader

_KINDS = {"ckpt": "MindSpore .ckpt", "safetensors": ".safetensors", "pytorch": "PyTorch checkpoint"}


def describe_checkpoint(path: StrPath, *, check: bool = False) -> dict[str, Any]:
    """Describes a file without reading its tensors (a vocabulary is read whole).

    Args:
      path: `.ckpt`, `.safetensors`, a PyTorch file, `.weights.h5` or a vocabulary.
      check: read the whole file, for its sha256 and to compare its checksum.

    Returns:
      JSON-ready dict: `path`, `kind`, `bytes`, `tensors` (each `name`, `dtype`, `shape`, `bytes`, `role`), `config` (JSON) or
      None, `sha256` (`""` if not cheap to know), `known_as`, `notes`, and what the kind adds. A vocabulary has, instead
      of `tensors` and `config`, `features` (each `name`, `size`, and where days are known `last_seen`, see `describe_days`)
      its `fingerprint`, and `hashed`, `shared` and `unified` (`IdSpaces`) where it has any.

    Raises:
      CheckpointError: not such a file.
      DataError: a damaged vocabulary.
    """
    path = os.fspath(path)
    if is_key_file(path):
        found = _vocabulary(path)
    elif _is_hdf5(path):
        found = _weights_file(path)
    else:
        found = _checkpoint(path, check)
    report = {"path": path, "bytes": os.path.getsize(path), "notes": [], **found}
    report["sha256"] = sha256_file(path, quiet=False) if check else known_sha256(path)
    report["known_as"] = KNOWN.get(report["sha256"] or report.get("source_sha256", ""), "")
    return report


def _is_hdf5(path: str) -> bool:
    if not os.path.isfile(path):  # open_checkpoint raises what is wrong
        return False
    with open(path, "rb") as f:
        return f.read(len(SIGNATURE)) == SIGNATURE


def _tensor(info: TensorInfo, role: str) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.nbytes, "role": role}


def _checkpoint(path: str, check: bool) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        notes = []
        if check:
            notes.append("checksum correct" if checkpoint.check_crc() else "the file carries no checksum of its own")
        roles = dict.fromkeys(checkpoint.names, "")
        config = None
        try:
            found = assign(checkpoint.names, path)
            roles.update(dict.fromkeys(found.weights.values(), "weight"))
            roles.update({name: f"optimizer state ({slot})" for (slot, _), name in found.state.items()})
            config = infer_config({w: found.naming.shape(w, checkpoint.info(n).shape) for w, n in found.weights.items()}, path)
        except CheckpointError as e:
            notes.append(str(e))
        return {
            "kind": _KINDS[checkpoint.format],
            "tensors": [_tensor(checkpoint.info(name), role) for name, role in roles.items()],
            "config": config and config.to_json(),
            "notes": notes,
        }


def _weights_file(path: str) -> dict[str, Any]:
    with WeightsReader(path) as reader:
        infos = [TensorInfo(name, "Float32", shape) for name, shape in weight_shapes(reader.config).items()]
        return {
            "kind": "dlrm_tf weights",
            "tensors": [_tensor(info, "weight") for info in infos],
            "config": reader.config.to_json(),
            "source_sha256": reader.attributes["source_sha256"],
            "vocabulary_fingerprint": reader.attributes["vocabulary_fingerprint"],
        }


def _vocabulary(path: str) -> dict[str, Any]:
    vocabulary = Vocabulary.load(path)
    features: list[dict[str, Any]] = [{"name": name, "size": size} for name, size in zip(vocabulary.names, vocabulary.sizes)]
    listed = [feature for feature in features if feature["name"] not in vocabulary.spaces.hashed]
    days = {feature["name"]: describe_days(vocabulary.last_seen(feature["name"])) for feature in listed}
    if any(days[feature["name"]]["unknown"] < feature["size"] for feature in listed):
        for feature in listed:
            feature["last_seen"] = days[feature["name"]]
    report = {"kind": "dlrm_tf vocabulary", "features": features, "fingerprint": vocabulary.fingerprint}
    return {**report, **vocabulary.spaces.to_dict()}


def as_text(report: dict[str, Any]) -> str:
    """A report of `describe_checkpoint` as a table of several lines."""
    lines = [f"{report['path']}: {report['kind']}, {report['bytes']:,} bytes"]
    if "tensors" in report:
        width = max((len(t["name"]) for t in report["tensors"]), default=4)
        for t in report["tensors"]:
            lines.append(
                f"  {t['name']:<{width}}  {t['dtype']:<8}  {str(t['shape']):<16}  {t['bytes']:>13,}  {t['role']}".rstrip()
            )
        totals: dict[str, tuple[int, int]] = {}
        for t in report["tensors"]:
            count, nbytes = totals.get(t["role"], (0, 0))
            totals[t["role"]] = (count + 1, nbytes + t["bytes"])
        for role, (count, nbytes) in totals.items():
            lines.append(f"{role or 'other'}: {count} tensors, {nbytes:,} bytes")
    if "features" in report:
        lines += _feature_lines(report["features"])
        lines.append(f"{len(report['features'])} features, {sum(f['size'] for f in report['features']):,} categories")
    for key in sorted(set(report) - {"path", "kind", "bytes", "tensors", "features", "notes"}):
        if report[key]:
            lines.append(f"{key}: {report[key]}")
    lines += [f"note: {note}" for note in report["notes"]]
    return "\n".join(lines)


def _feature_lines(features: list[dict[str, Any]]) -> list[str]:
    """A line for each feature of a vocabulary; where days are known under a heading."""
    width = max((len(f["name"]) for f in features), default=4)
    lines = [f"  {f['name']:<{width}}  {f['size']:>13,}" for f in features]
    if not any("last_seen" in f for f in features):
        return lines
    columns = ("oldest", "quarter", "median", "three_quarters", "newest")
    head = f"  {'':<{width}}  {'keys':>13}  last seen: " + "".join(f"{name.replace('_', ' '):<16}" for name in columns)
    days = ["".join(f"{f['last_seen'][name]:<16}" for name in columns) + f"{f['last_seen']['unknown']:,}" for f in features]
    return [head + "unknown", *(f"{line}  {'':<11}{text}" for line, text in zip(lines, days))]
