"""`TF_CONFIG`, the environment variable that tells a process its cluster and its place in it."""

import json
import os

from dlrm_tf.errors import UsageError

_EXAMPLE = '{"cluster": {"worker": ["host:port"], "ps": ["host:port"]}, "task": {"type": "worker", "index": 0}}'


def task() -> tuple[str, int]:
    """`(type, index)` of this process; `("chief", 0)` when there is no `TF_CONFIG`.

    Raises:
      UsageError: `TF_CONFIG` is not JSON.
    """
    mine = _read().get("task", {})
    return mine.get("type", "chief"), int(mine.get("index", 0))


def is_chief() -> bool:
    """Whether this process is the chief, or the first worker of a cluster without one.

    Raises:
      UsageError: `TF_CONFIG` is not JSON.
    """
    kind, index = task()
    return kind == "chief" or (kind == "worker" and index == 0 and "chief" not in _read().get("cluster", {}))


def cluster(strategy: str, jobs: tuple[str, ...]) -> dict[str, list[str]]:
    """The cluster: job -> addresses of its processes.

    Args:
      strategy: the strategy that needs it, named in the error.
      jobs: jobs that must have a process.

    Raises:
      UsageError: `TF_CONFIG` is not JSON, or names no process of such a job.
    """
    found = _read().get("cluster", {})
    missing = [job for job in jobs if not found.get(job)]
    if missing:
        raise UsageError(
            f"strategy {strategy}: TF_CONFIG names no {' and no '.join(missing)}; wanted {_EXAMPLE}, "
            "or try a cluster on this machine with --local-workers (and --local-ps)"
        )
    return found


def _read() -> dict:
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return {}
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise UsageError(f"TF_CONFIG: wanted JSON like {_EXAMPLE}. Received {text[:80]!r} ({e})") from e
    return config
