"""A sample of a log's rows: from the head of its files, and of plain ones from places all over them."""

import dataclasses
from collections.abc import Sequence
from typing import Optional

from dlrm_tf.data.guess.column import UNKNOWN
from dlrm_tf.data.guess.text import TextFormat, cells_of, guess_format
from dlrm_tf.data.readers.compression import HEAD_BYTES, compression_of, unpacked
from dlrm_tf.data.readers.storage import open_bytes, size_of
from dlrm_tf.errors import DataError

SAMPLE_BYTES = 4 << 20  # of text; some 25,000 rows of Criteo
_FILES, PLACES = 8, 16  # at most so many files, and places in all
_BOM = "\ufeff"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows of a log.

    Attributes:
      names: of the columns.
      cells: by column, the texts of its cells, '' where missing.
      types: by column, what the file says of its type, as `guess_column` takes it.
      rows: rows of the whole log, about.
      odd: lines of the sample that have another number of columns.
      format: how the text is written; None of a table.
    """

    names: list[str]
    cells: list[Sequence[str]]
    types: list[str]
    rows: int
    odd: int = 0
    format: Optional[TextFormat] = None


def spread(paths: Sequence[str]) -> list[str]:
    """The files to look at: all of a few, of many some all over them."""
    return [paths[i * len(paths) // _FILES] for i in range(_FILES)] if len(paths) > _FILES else list(paths)


def sample_text(paths: Sequence[str]) -> Sample:
    """A sample of text files, plain or compressed.

    Args:
      paths: local paths or URLs.

    Raises:
      DataError: a file is damaged, or has no columns.
    """
    files = spread(paths)
    found: Optional[TextFormat] = None
    rows, odd, texts, whole = [], 0, 0, 0.0
    for path in files:
        parts, size = _parts(path, SAMPLE_BYTES // len(files), max(1, PLACES // len(files)))
        found = found or guess_format(parts[0], path)
        whole += size
        for number, part in enumerate(parts):
            texts += len(part.encode())
            lines = cells_of(part, found.separator, found.quote)
            lines = lines[1:] if number == 0 and found.names else lines
            good = [line for line in lines if len(line) == found.width]
            odd += len(lines) - len(good)
            rows += good
    if found is None or not rows:
        raise DataError(f"{', '.join(paths[:3])}: wanted rows. Received none")
    whole *= len(paths) / len(files)
    names = found.names or [f"column_{i + 1}" for i in range(found.width)]
    cells: list[Sequence[str]] = list(zip(*rows))
    return Sample(names, cells, [UNKNOWN] * found.width, max(len(rows), round(len(rows) * whole / texts)), odd, found)


def _parts(path: str, most: int, places: int) -> tuple[list[str], float]:
    """Whole lines of a file, about `most` bytes from so many places, the first at its beginning; and its bytes when unpacked."""
    size = size_of(path)
    with open_bytes(path) as stored:
        head = stored.read(HEAD_BYTES)
        stored.seek(0)
        with unpacked(stored, head, path) as stream:
            if compression_of(head):
                text = stream.read(most)
                done = not stream.read(1)
                return [_lines(text, 0, done)], len(text) if done else size * len(text) / max(stored.tell(), 1)
            if size <= most:
                return [_lines(stream.read(), 0, True)], size
            parts = []
            for i in range(places):
                # Half of the sample from the head, so that there is a sample where lines are long.
                length = most // 2 if i == 0 else most // 2 // places
                stream.seek(i * (size - length) // places)
                parts.append(_lines(stream.read(length), i, False))
            return parts, size


def _lines(text: bytes, place: int, last: bool) -> str:
    """The whole lines of a piece of a file as text."""
    begin = text.find(b"\n") + 1 if place else 0
    end = len(text) if last else text.rfind(b"\n") + 1
    return text[begin:end].decode("utf-8", "backslashreplace").removeprefix(_BOM)
