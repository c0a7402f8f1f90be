"""Waiting for what another thread or process does; a deadline only ends a hang, however busy the machine is."""

import time

PATIENCE = 120.0


def eventually(condition, seconds: float = PATIENCE) -> None:
    """Returns when `condition()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)
