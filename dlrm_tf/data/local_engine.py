"""LocalEngine: `prepare` in this process, on threads."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from dlrm_tf.data.admit import Admission
from dlrm_tf.data.finish import Finish
from dlrm_tf.data.readers.reader import Reader
from dlrm_tf.data.scan import Rules, Scan
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.data.workspace import Workspace
from dlrm_tf.errors import UsageError


class LocalEngine:
    """What `prepare` uses without `engine`; `SparkEngine` has the same methods.

    Args:
      threads: of parsing and look-up; None is one for each CPU.

    Attributes:
      job: what an interrupted job compares beside the arguments of `prepare`, JSON values.

    Raises:
      UsageError: `threads` is below 1.
    """

    job: dict[str, Any] = {}

    def __init__(self, threads: Optional[int] = None):
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1. Received {threads}")
        self.threads = threads or os.cpu_count() or 1

    def check(self, readers: Sequence[Reader], workspace: Workspace) -> None:
        """Takes every input."""

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Starts nothing."""
        yield

    def scan(
        self,
        workspace: Workspace,
        readers: Sequence[Reader],
        known: Vocabulary,
        rules: Rules,
        *,
        admission: Admission,
        quiet: bool,
    ) -> Finish:
        """See `SparkEngine.scan`."""
        scan = Scan(workspace, readers, known, rules)
        scan.resume()
        scan.run(self.threads, quiet)
        finish = Finish(workspace, rules.spec, scan.notes, scan.vocabulary)
        if admission.counts_keys:
            finish.admit(admission)
        return finish
