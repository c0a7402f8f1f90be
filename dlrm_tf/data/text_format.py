"""How a text log is written: which separators, quotes, markers of missing cells and labels a feature spec can have."""

import math
from typing import Any

from dlrm_tf.data.bag import is_separator
from dlrm_tf.errors import DataError

LABELS = {"0/1": (0, 1), "-1/1": (-1, 1)}
"""The numbers of a negative and a positive label, by the name of the pair."""


def check_text_format(separator: Any, header: Any, quote: Any, escape: Any, missing: Any, labels: Any) -> None:
    """Checks fields of `FeatureSpec`, which says what they are; raises DataError."""
    if not is_separator(separator, "\t\x01"):  # Hive separates by \x01
        raise DataError(f"feature spec: separator must be one printable ASCII character, a tab or \\x01. Received {separator!r}")
    if not isinstance(header, bool) and header != "skip":
        raise DataError(f"feature spec: header must be true, false or 'skip'. Received {header!r}")
    marks = [separator]
    for name, mark, allowed in (("quote", quote, (None, "")), ("escape", escape, (None,))):
        if mark in allowed:
            continue
        if not is_separator(mark, "") or mark in marks or mark.isalnum():
            raise DataError(
                f"feature spec: {name} must be one printable ASCII character, no letter or digit, and another one than "
                f"{' and '.join(map(repr, marks))}. Received {mark!r}"
            )
        marks.append(mark)
    if escape is not None and not quote:
        raise DataError(f"feature spec: escape must stand beside quote. Received {escape!r} without one")
    if labels not in LABELS:
        raise DataError(f"feature spec: labels must be one of {', '.join(LABELS)}. Received {labels!r}")
    if not isinstance(missing, tuple):
        raise DataError(f"feature spec: missing must be a list of texts. Received {missing!r}")
    for marker in missing:
        if not isinstance(marker, str) or not marker or _is_number(marker) or any(end in marker for end in "\r\n"):
            raise DataError(
                "feature spec: missing must have texts of one line that are no numbers (a number can't be told from a value). "
                f"Received {marker!r}"
            )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
