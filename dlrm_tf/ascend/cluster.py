"""Which device this process works on, and in which company: read from the plugin's environment variables and checked.

The plugin knows two ways, never mixed: a rank table (RANK_TABLE_FILE, RANK_ID, RANK_SIZE), or a chief that the workers report to
(CM_CHIEF_IP, CM_CHIEF_PORT, CM_CHIEF_DEVICE, CM_WORKER_SIZE, CM_WORKER_IP). Without either the process is alone.
"""

import dataclasses
import json
import os
from typing import Optional

from dlrm_tf.errors import AscendError

_TABLE = ("RANK_TABLE_FILE", "RANK_ID", "RANK_SIZE")
_CHIEF = ("CM_CHIEF_IP", "CM_CHIEF_PORT", "CM_CHIEF_DEVICE", "CM_WORKER_SIZE", "CM_WORKER_IP")
_DEVICE = "ASCEND_DEVICE_ID"
# A table of 4096 devices has about 600 KB.
_MAX_TABLE_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together.

    Attributes:
      world_size: their number.
      rank: this process's, from 0; None where only the plugin knows it, once the device is open (the CM_* way).
      device_id: the device this process works on, a number on its own server.
    """

    world_size: int
    rank: Optional[int]
    device_id: int

    @classmethod
    def from_environment(cls, environ=None) -> "Cluster":
        """Reads and checks the plugin's variables.

        Args:
          environ: a mapping; the process's environment by default.

        Raises:
          AscendError: variables of both ways, a missing one, a value that is none, or a rank table that does not fit them.
        """
        environ = os.environ if environ is None else environ
        values = {name: environ[name] for name in (*_TABLE, *_CHIEF, _DEVICE) if environ.get(name)}
        table, chief = ([name for name in names if name in values] for names in (_TABLE, _CHIEF))
        if table and chief:
            raise AscendError(
                f"{', '.join(table)} and {', '.join(chief)} are set: a cluster is told by a rank table or by CM_* variables, "
                "never by both; unset those of one way"
            )
        if chief:
            return cls._from_chief(values)
        if table:
            # Without it the plugin would take every process for a cluster of its own.
            _require(values, ("RANK_SIZE",), ", ".join(table))
        size = _number(values, "RANK_SIZE", 1) if table else 1
        device = _number(values, _DEVICE, 0) if _DEVICE in values else None
        if size == 1:
            return cls(1, 0, device or 0)
        _require(values, _TABLE, f"RANK_SIZE={size}")
        rank = _number(values, "RANK_ID", 0, size - 1)
        devices = _devices_of_table(values["RANK_TABLE_FILE"], size)
        # In a container the table's number is the server's, not the container's: the variable wins.
        return cls(size, rank, devices[rank] if device is None else device)

    @classmethod
    def _from_chief(cls, values: dict) -> "Cluster":
        _require(values, _CHIEF, "CM_*")
        size = _number(values, "CM_WORKER_SIZE", 1, 32768)
        _number(values, "CM_CHIEF_PORT", 0, 65520)
        _number(values, "CM_CHIEF_DEVICE", 0)
        if size > 1:
            # Left out, every process of a server would take device 0.
            _require(values, (_DEVICE,), f"CM_WORKER_SIZE={size}")
        device = _number(values, _DEVICE, 0) if _DEVICE in values else 0
        return cls(size, 0 if size == 1 else None, device)


def _require(values: dict, names, because: str) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise AscendError(f"{because} is set, but not {', '.join(missing)}")


def _number(values: dict, name: str, low: int, high: Optional[int] = None) -> int:
    text = values[name]
    number = int(text) if text.isascii() and text.isdigit() else -1
    if number < low or (high is not None and number > high):
        range_ = f"{low} or more" if high is None else f"{low} to {high}"
        raise AscendError(f"{name}: wanted a whole number, {range_}. Received {text!r}")
    return number


def _devices_of_table(path: str, size: int) -> dict:
    """Rank -> device id of a rank table (JSON: `server_list` of `device` of `rank_id`, `device_id`)."""
    try:
        with open(path, encoding="utf-8") as f:
            text = f.read(_MAX_TABLE_BYTES)
    except (OSError, UnicodeDecodeError) as e:
        raise AscendError(f"RANK_TABLE_FILE: {path}: can't be read ({getattr(e, 'strerror', None) or 'not UTF-8'})") from e
    try:
        devices = {
            int(device["rank_id"]): int(device["device_id"])
            for server in json.loads(text)["server_list"]
            for device in server["device"]
        }
    except (ValueError, KeyError, TypeError) as e:
        raise AscendError(
            f"RANK_TABLE_FILE: {path}: wanted JSON with server_list[].device[].rank_id and .device_id ({type(e).__name__}: {e})"
        ) from e
    if sorted(devices) != list(range(size)):
        came = f"{len(devices)} ranks: {str(sorted(devices))[:60]}"
        raise AscendError(f"RANK_TABLE_FILE: {path}: wanted ranks 0 to {size - 1} (RANK_SIZE={size}). Received {came}")
    return devices
