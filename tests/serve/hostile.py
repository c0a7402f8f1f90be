"""What the tests of hostile input share: how much to try, and that the server logged no defect."""

import logging

from hypothesis import HealthCheck, settings

FUZZ = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def assert_no_defect(caplog):
    """No error in the log of the server or of its libraries."""
    names = ("dlrm_tf.serve", "aiohttp", "asyncio")
    defects = [r.getMessage() for r in caplog.records if r.name.startswith(names) and r.levelno >= logging.ERROR]
    assert not defects, defects[0]
