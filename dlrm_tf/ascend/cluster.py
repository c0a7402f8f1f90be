"""The device of this process and its cluster, read from the plugin's environment variables and checked.

A cluster is described in one of two ways, never both: by a rank table (RANK_TABLE_FILE, RANK_ID, RANK_SIZE), or by a chief that
the workers register with (CM_CHIEF_IP, CM_CHIEF_PORT, CM_CHIEF_DEVICE, CM_WORKER_SIZE, CM_WORKER_IP). Without either there is
one process.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
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
      world_size: number of processes.
      rank: number of this process, from 0; None with CM_* variables, where the plugin assigns it when the device is opened.
      device_id: the device this process uses, a number on its own server.
    """

    world_size: int
    rank: Optional[int]
    device_id: int

    @classmethod
    def from_environment(cls, environ: Optional[Mapping[str, str]] = None) -> "Cluster":
        """Reads and checks the plugin's variables.

        Args:
          environ: the variables; the process's environment when None.

        Raises:
          AscendError: variables of both descriptions, a missing one, an invalid value, or a rank table that does not match them.
        """
        environ = os.environ if environ is None else environ
        values = {name: environ[name] for name in (*_TABLE, *_CHIEF, _DEVICE) if environ.get(name)}
        table, chief = ([name for name in names if name in values] for names in (_TABLE, _CHIEF))
        if table and chief:
            raise AscendError(
                f"{', '.join(table)} and {', '.join(chief)} are set: a rank table or CM_* variables describe a cluster, "
                "never both; unset one of the two groups"
            )
        if chief:
            return cls._from_chief(values)
        if table:
            # Without it the plugin would treat every process as a cluster of its own.
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
