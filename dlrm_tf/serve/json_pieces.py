"""JSON of any size, read a piece at a time: never more Python objects than a piece makes, never long in one call.

`json.loads` makes objects of many times a text's size, and holds the interpreter all the while. Here a container larger than
`PIECE_BYTES` is cut at the commas of its own level, found by NumPy over the bytes, and only pieces are given to `json.loads`.
A cut list is right JSON exactly if each piece, put in brackets, is: so a wrong cut can't make a wrong text pass.
"""

import codecs
import contextlib
import json
import mmap
import re
from collections.abc import Collection, Iterator
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.serve.rest_errors import SHOWN, NotJson, TooDeep, format_error, parse_error, too_deep_error
from dlrm_tf.serve.rest_json import Literal
from dlrm_tf.serving_api.errors import RequestError

# A container up to this size is loaded whole; a larger one is cut into pieces of this size.
PIECE_BYTES = 1 << 16
# Bytes looked at by one round of NumPy calls.
SCAN_BYTES = 1 << 18
# Bytes of a string that a message shows, at most.
TOKEN_BYTES = 6 * SHOWN
# Containers in each other. Tensors have at most 32 dimensions; `json.loads` itself takes a few hundred.
MAX_DEPTH = 200

_SPACE = re.compile(rb"[ \t\n\r]*")
_KEY = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\[\]{},:" \t\n\r]+', re.DOTALL)
_KEY_END = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*")


def _written(token: str) -> str:
    """A string or number as `json.dumps` writes it."""
    with contextlib.suppress(ValueError):
        return json.dumps(json.loads(token), ensure_ascii=False)
    return token


class Span:
    """A JSON value in a text, not loaded: bytes `start` to `end`, white space around it left out."""

    def __init__(self, text: memoryview, start: int, end: int):
        self._text = text
        self._start = _SPACE.match(text, start, end).end()  # type: ignore[union-attr]
        while end > self._start and text[end - 1] in b" \t\n\r":
            tail = bytes(text[max(self._start, end - PIECE_BYTES) : end])
            end -= len(tail) - len(tail.rstrip(b" \t\n\r"))
        self._end = end

    def __len__(self) -> int:
        return self._end - self._start

    def _is(self, brackets: bytes) -> bool:
        return len(self) > 1 and bytes((self._text[self._start], self._text[self._end - 1])) == brackets

    @property
    def is_list(self) -> bool:
        """Whether it begins and ends as a list does."""
        return self._is(b"[]")

    def printed(self) -> Iterator[str]:
        """The text as JSON with four blanks a level, in pieces: for the beginning of a message."""
        depth, at, last = 0, self._start, ""
        while at < self._end:
            end = min(self._end, at + TOKEN_BYTES)
            token = _TOKEN.match(self._text, at, end)
            text = str(token[0] if token else self._text[at:end], "utf-8", "replace")
            at = _SPACE.match(self._text, token.end() if token else self._end, self._end).end()  # type: ignore[union-attr]
            closes = text in ("]", "}")
            depth -= closes
            if last == "," or (last in ("[", "{") and not closes) or (closes and last not in ("[", "{")):
                yield "\n" + "    " * depth
            yield {":": ": "}.get(text) or _written(text)
            depth += text in ("[", "{")
            last = text

    def resolve(self) -> Any:
        """The value: a list stays a Span, an object becomes a dict whose large values may be Spans, all else is loaded."""
        if self.is_list:
            return self
        if not self._is(b"{}"):
            return self._load(self._start, self._end, "")
        members = self.members()
        if members.keys() == {"b64"} and isinstance(members["b64"], Span):  # one long string, as of a picture
            members["b64"] = members["b64"].resolve()
        return Document(members, self)

    def parts(self) -> Iterator[list]:
        """The elements of a list, in lists; one that is too large to be loaded comes alone, as `resolve` has it."""
        for start, end in self._cuts():
            if end - start > PIECE_BYTES:
                yield [Span(self._text, start, end).resolve()]
            else:
                yield self._load(start, end, "[]")

    def members(self, wanted: Optional[Collection[str]] = None) -> dict[str, Any]:
        """An object's members by name, large values as Spans; of those not `wanted` only the syntax is checked."""
        members: dict[str, Any] = {}
        for start, end in self._cuts():
            found = self._member(start, end) if end - start > PIECE_BYTES else self._load(start, end, "{}")
            for name, value in found.items():
                used = wanted is None or name in wanted
                unused = members.get(name) if used else value
                if isinstance(unused, Span):
                    check(unused)
                if used:
                    members[name] = value
        return members

    def _member(self, start: int, end: int) -> dict[str, "Span"]:
        start = Span(self._text, start, end)._start
        key = _KEY.match(self._text, start, end)
        colon = _KEY_END.match(self._text, key.end(), end) if key else None
        if key is None or colon is None:
            raise NotJson
        return {self._load(start, key.end(), ""): Span(self._text, colon.end(), end)}

    def _load(self, start: int, end: int, brackets: str) -> Any:
        """The value, or the comma-separated elements, of bytes `start` to `end`, which are at least one."""
        try:
            text = str(self._text[start:end], "utf-8", "surrogatepass")
            value = json.loads(brackets[:1] + text + brackets[1:], parse_constant=Literal)
        except RecursionError:
            raise TooDeep from None
        except ValueError:
            raise NotJson from None
        if brackets and not value:  # nothing between two commas
            raise NotJson
        return value

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """The elements between the brackets: as many at a time as `PIECE_BYTES` hold, or a larger one alone."""
        begin, end = self._start + 1, self._end - 1
        if not len(Span(self._text, begin, end)):
            return
        last: Optional[int] = None  # a comma where the current piece may end
        for commas, scanned in self._commas(begin, end):
            i = 0
            while i < len(commas):
                fitting = int(np.searchsorted(commas, begin + PIECE_BYTES, "right"))
                if fitting == len(commas) and begin + PIECE_BYTES >= scanned:
                    last = int(commas[-1])
                    break
                cut = int(commas[fitting - 1]) if fitting > i else last if last is not None else int(commas[i])
                yield begin, cut
                begin, last = cut + 1, None
                i = int(np.searchsorted(commas, begin))
        if last is not None and end - begin > PIECE_BYTES:
            yield begin, last
            begin = last + 1
        yield begin, end

    def _commas(self, begin: int, end: int) -> Iterator[tuple[np.ndarray, int]]:
        """Positions of the commas outside of strings and inner containers, and how far the text was looked at."""
        depth, in_string, backslashes = 0, np.uint8(0), 0
        for start in range(begin, end, SCAN_BYTES):
            codes = np.frombuffer(self._text[start : min(start + SCAN_BYTES, end)], np.uint8)
            quotes = codes == ord('"')
            if backslashes or (codes == ord("\\")).any():
                place = np.arange(len(codes))
                before = np.maximum.accumulate(np.where(codes != ord("\\"), place, -1 - backslashes))
                run = place - before  # backslashes up to here, this one included
                quotes &= np.concatenate([[backslashes], run[:-1]]) % 2 == 0
                backslashes = int(run[-1]) & 1
            inside = np.bitwise_xor.accumulate(quotes.view(np.uint8)) ^ in_string
            in_string = inside[-1]
            codes = np.where(inside, np.uint8(0), codes)
            bracket = codes | 0x20  # [ and { differ in this bit, ] and } too
            level = np.cumsum((bracket == ord("{")).view(np.int8) - (bracket == ord("}")).view(np.int8), dtype=np.int32) + depth
            if level.min() < 0:
                raise NotJson
            if level.max() > MAX_DEPTH:
                raise TooDeep
            depth = int(level[-1])
            yield np.flatnonzero((codes == ord(",")) & (level == 0)) + start, start + len(codes)
        if depth or in_string:
            raise NotJson


def check(value: Any) -> None:
    """Checks the syntax of a value that nobody wants, loaded in part or not at all; raises NotJson."""
    value = resolved(value)
    for part in value.parts() if isinstance(value, Span) else [list(value.values())] if isinstance(value, dict) else ():
        for inner in part:
            if isinstance(inner, (Span, Document)):
                check(inner)


def resolved(value: Any) -> Any:
    """`value` loaded as far as it is small: a Span as `Span.resolve` has it, any other value as it is."""
    return value.resolve() if isinstance(value, Span) else value


def parts(value: Union[list, Span]) -> Iterator[list]:
    """The elements of a list, loaded or not, in lists."""
    return value.parts() if isinstance(value, Span) else iter([value])


class Document(dict):
    """An object's members, of which large ones are not loaded; it prints the whole text."""

    def __init__(self, members: dict[str, Any], span: Span):
        super().__init__(members)
        self.printed = span.printed


@contextlib.contextmanager
def read_object(body: Union[bytearray, mmap.mmap], wanted: Collection[str]) -> Iterator[dict[str, Any]]:
    """A context with a body's JSON object: its `wanted` members, large values as Spans, which are checked when they are read.

    An error in the syntax anywhere goes before every other error that the context ends with, as where a body is loaded first.

    Raises:
      RequestError: not an object, or the syntax is wrong.
    """
    start = len(codecs.BOM_UTF8) if body[: len(codecs.BOM_UTF8)] == codecs.BOM_UTF8 else 0
    end = body.find(b"\0")  # the text ends there, as in `rest_json.parse`
    text = memoryview(body)[: end if end >= 0 else len(body)]
    span = Span(text, start, len(text))
    try:
        try:
            if not span._is(b"{}"):
                raise format_error(span if span.is_list else span.resolve(), "Is not object")
            members = span.members(wanted)
            yield Document({name: resolved(value) for name, value in members.items()}, span)
        except RequestError:
            check(span)
            raise
    except TooDeep:
        raise too_deep_error() from None
    except NotJson:
        raise parse_error(text) from None
