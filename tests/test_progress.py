"""Progress in a log: plain lines with count, rate and time left."""

import io
import re

from dlrm_tf.progress import Progress


def test_a_log_gets_plain_lines():
    out = io.StringIO()
    with Progress("prepare", total=200, unit="rows", interval=0.0, stream=out) as progress:
        progress.update(100, "loss 0.45")
        progress.update(100)
    lines = out.getvalue().splitlines()
    assert re.match(r"prepare: 100 of 200 rows, [\d,]+ rows/s, 0\.\d s, [\d,]+ s left  loss 0\.45$", lines[0])
    assert re.match(r"prepare: 200 of 200 rows, [\d,]+ rows/s, 0\.\d s  done$", lines[-1])


def test_quiet_and_failed_work_claim_nothing():
    out = io.StringIO()
    with Progress("a", stream=out, quiet=True) as progress:
        progress.update(1)
    try:
        with Progress("b", stream=out):
            raise RuntimeError
    except RuntimeError:
        pass
    assert out.getvalue() == ""


def test_work_that_goes_on_counts_from_where_it_was():
    out = io.StringIO()
    with Progress("train", total=200, unit="rows", stream=out, done=150) as progress:
        progress.update(50)
    assert out.getvalue().startswith("train: 200 of 200 rows, ")
