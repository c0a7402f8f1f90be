"""Quoted fields equal what Python's csv module wrote; whatever the text, they equal the rules one character at a time."""

import csv
import io
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlrm_tf.data import quoting as module
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.quoting import Quoting
from dlrm_tf.data.readers import text as reading
from dlrm_tf.data.readers.text import TextReader
from dlrm_tf.data.spec import FeatureSpec


def rows_of(quoting: Quoting, text: bytes) -> list:
    """The fields of each line, None for a bad one."""
    found = quoting.fields(text)
    starts = [0, *(found.ends + 1).tolist()]
    cells = [found.text[a:b].tobytes() for a, b in zip(starts, found.ends.tolist())]
    stops = (found.last + 1).tolist()
    return [None if i in found.faults else cells[a:b] for i, (a, b) in enumerate(zip([0, *stops], stops))]


def by_hand(quoting: Quoting, text: bytes, longest: int) -> list:
    """`rows_of` by the rules, one character at a time."""
    separator, quote = quoting.separator.encode(), quoting.quote.encode()
    escape = (quoting.escape or "").encode()
    special = {separator, quote, b"\n", b"\r", escape} - {b""}

    def at(i):
        return text[i : i + 1]

    def escaped(i):
        return escape != b"" and at(i) == escape and at(i + 1) in special

    def after_line_end(i):
        return i + (2 if text[i : i + 2] == b"\r\n" else 1)

    def field(i):
        """`(content, position after it)`; None as content of one whose quotes are wrong."""
        content, since = b"", i
        quoted = at(i) == quote
        i += quoted
        while i < len(text):
            if escaped(i):
                content, i = content + at(i + 1), i + 2
                continue
            if at(i) == quote:
                if not quoted or i - since > longest:
                    return None, i
                if at(i + 1) != quote:
                    return (content if at(i + 1) in (separator, b"\n", b"\r", b"") else None), i + 1
                content, i, since = content + quote, i + 2, i + 1
                continue
            if not quoted and at(i) in (separator, b"\n", b"\r"):
                return content, i
            content, i = content + at(i), i + 1
        return (None if quoted else content), i

    rows, i = [], 0
    while i < len(text):
        start, cells = i, []
        while True:
            content, i = field(i)
            if content is None:
                i = start
                while i < len(text) and at(i) not in (b"\n", b"\r"):
                    i += 2 if escaped(i) else 1
                cells = None
            else:
                cells.append(content)
                if at(i) == separator:
                    i += 1
                    continue
            break
        rows.append(cells)
        i = after_line_end(i)
    return rows


quotings = st.sampled_from(
    [Quoting(",", '"'), Quoting(",", '"', "\\"), Quoting("\t", "'"), Quoting(";", "'", "^"), Quoting(",", '"', "#")]
)
# Half of the characters are special ones.
characters = [b'"', b"'", b",", b"\t", b";", b"\n", b"\r", b"\\", b"^", b"#", b"a", b"\xff", b"bcd"]
hostile = st.lists(st.sampled_from(characters), max_size=60).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(hostile.map(lambda text: text[:12]), min_size=2, max_size=4), min_size=1, max_size=6),
    quotings,
    # It quotes a return only where one ends lines.
    st.sampled_from([(csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_ALL, "\n")]),
    st.booleans(),
)
def test_reads_what_pythons_csv_module_writes(rows, quoting, style, ended):
    style, ending = style
    file = io.StringIO(newline="")
    marks = {"delimiter": quoting.separator, "quotechar": quoting.quote, "escapechar": quoting.escape, "lineterminator": ending}
    writer = csv.writer(file, quoting=style, doublequote=quoting.escape is None, **marks)
    writer.writerows([[cell.decode("latin-1") for cell in row] for row in rows])
    text = file.getvalue().encode("latin-1")
    # Python 3.9 does not escape the escape character (bpo-12178).
    unescaped = (
        sys.version_info < (3, 10)
        and quoting.escape is not None
        and any(quoting.escape.encode() in b"".join(row) for row in rows)
    )
    if quoting.quote.encode() in text and not unescaped:
        assert rows_of(quoting, text if ended else text[: -len(ending)]) == rows


@settings(max_examples=500, deadline=None)
@given(hostile, quotings, st.integers(1, 30))
@example(b'"\\\n', Quoting(",", '"', "\\"), 9)  # an escaped newline ends the text
@example(b'"a",b\\\n', Quoting(",", '"', "\\"), 9)
def test_any_text_is_read_by_the_rules(text, quoting, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_QUOTED", longest)
        if quoting.quote.encode() in text:
            assert rows_of(quoting, text) == by_hand(quoting, text, longest)


@settings(max_examples=200, deadline=None)
@given(hostile, quotings, st.integers(1, 30), st.integers(1, 40))
def test_pieces_do_not_matter(tmp_path_factory, text, quoting, longest, piece_bytes):
    """Lines are cut where they end, so that pieces of any size, and from any piece on, hold the same lines."""
    spec = FeatureSpec((("y", "label"), ("c", "categorical")), quoting.separator, quote=quoting.quote, escape=quoting.escape)
    path = tmp_path_factory.mktemp("quoted") / "log.csv"
    path.write_bytes(text)
    reader = TextReader(str(path), spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LONGEST_QUOTED", longest)
        patch.setattr(reading, "PIECE_BYTES", piece_bytes)
        patch.setattr(reading, "HEAD_BYTES", piece_bytes)
        pieces = list(reader.pieces())
        assert b"".join(piece.content for piece in pieces) == text
        rows = [row for piece in pieces for row in by_hand(quoting, piece.content, longest)]
        assert rows == by_hand(quoting, text, longest)
        if pieces:
            offset = pieces[len(pieces) // 2].offset
            again = [piece.content for piece in reader.pieces(offset)]
            assert b"".join(again) == text[offset:]
            rows = [row for content in again for row in by_hand(quoting, content, longest)]
            assert rows == by_hand(quoting, text[offset:], longest)


def test_an_escape_in_a_text_without_quotes():
    spec = FeatureSpec((("y", "label"), ("c", "categorical")), ",", quote='"', escape="\\")
    block = parse_block(b"1,a\\,b\n0,\\N\n", spec)
    assert (block.odd, block.bad) == ([[(0, b"a,b"), (1, b"\\N")]], [])


def test_an_open_quote_costs_its_line_alone():
    text = b'1,"a\n0,b\n1,"c ""d"""\n0,e"f\n1,"g"h\n0,"i,\n'
    found = Quoting(",", '"').fields(text)
    assert rows_of(Quoting(",", '"'), text) == [None, [b"0", b"b"], [b"1", b'c "d"'], None, None, None]
    whole = "wanted quotes around whole fields only, with those inside doubled. Received "
    assert found.faults == {
        0: whole + repr('1,"a'),
        3: whole + repr('0,e"f'),
        4: whole + repr('1,"g"h'),
        5: "wanted a closing quote within 1 MB. Received '0,\"i,'",
    }
