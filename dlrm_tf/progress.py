"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then in a log."""

import sys
import time
import types
from typing import Any, Optional, TextIO


class Progress:
    """Counts `unit`s done; use as a context manager.

    Args:
      label: what is being done, shown first.
      total: how many units there are, or None when that is not known.
      unit: `"rows"`, `"B"`, `"steps"`; with `"B"` figures are scaled to MB.
      interval: seconds between two lines in a log.
      stream: where to write; standard error by default.
      quiet: show nothing.
      done: units done before, by a run that is resumed now; they count for the total, not for the rate.

    Example:
      with Progress("prepare", total=1000, unit="rows") as progress:
          progress.update(100, "loss 0.45")
    """

    def __init__(
        self,
        label: str,
        total: Optional[int] = None,
        unit: str = "rows",
        interval: float = 10.0,
        stream: Optional[TextIO] = None,
        quiet: bool = False,
        done: int = 0,
    ) -> None:
        self.label, self.total, self.unit, self.interval, self.quiet = label, total, unit, interval, quiet
        self.stream = sys.stderr if stream is None else stream
        self.done = self._done_before = done
        self._bar: Any = None  # tqdm's, on a terminal
        self._start = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        self._start = self._last = time.monotonic()
        if not self.quiet and getattr(self.stream, "isatty", lambda: False)():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.label,
                unit=" " + self.unit,
                unit_scale=True,
                file=self.stream,
                dynamic_ncols=True,
            )
        return self

    def __exit__(
        self,
        exc_type: Optional[type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[types.TracebackType],
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self.quiet and exc_type is None:
            self._line("done")

    def update(self, count: int, note: str = "") -> None:
        """`count` more units are done; `note` (for example the loss) is shown after the figures."""
        self.done += count
        if self.quiet:
            return
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last >= self.interval:
            self._last = time.monotonic()
            self._line(note)

    def _line(self, note: str) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self.done - self._done_before) / seconds
        scale, unit = (1e6, "MB") if self.unit == "B" else (1, self.unit)
        of = f" of {self.total / scale:,.0f}" if self.total else ""
        left = f", {(self.total - self.done) / rate:,.0f} s left" if self.total and rate and self.done < self.total else ""
        tail = f"  {note}" if note else ""
        print(
            f"{self.label}: {self.done / scale:,.0f}{of} {unit}, {rate / scale:,.0f} {unit}/s, {seconds:,.1f} s{left}{tail}",
            file=self.stream,
            flush=True,
        )
