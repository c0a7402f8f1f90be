"""parse_block equals Python's own reading of each line."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlrm_tf.data.key_column import hex_keys
from dlrm_tf.data.parse import parse_block
from dlrm_tf.data.spec import CRITEO, FeatureSpec

SPEC = FeatureSpec((("y", "label"), ("a", "int"), ("b", "int"), ("c", "categorical"), ("d", "categorical")))


def by_hand(text: bytes):
    """`(lines, {line: (label, dense, categories)}, bad line numbers)` by the rules, one line at a time."""
    text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = text.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    good, bad = {}, []
    for i, line in enumerate(lines):
        fields = line.split(b"\t")
        try:
            if len(fields) != 5 or int(fields[0]) not in (0, 1):
                raise ValueError
            good[i] = (int(fields[0]), [max(int(field), 0) if field else 0 for field in fields[1:3]], fields[3:])
        except ValueError:
            bad.append(i)
    return len(lines), good, bad


def rebuilt(block):
    """Rows of a block in the form of `by_hand`."""
    odd = [dict(column) for column in block.odd]
    rows = {}
    for row, line in enumerate(block.position.tolist()):
        categories = []
        for f in range(block.keys.shape[0]):
            if block.empty[f, row]:
                categories.append(b"")
            else:
                categories.append(odd[f].get(row, b"%08x" % block.keys[f, row]))
        rows[line] = (block.label[row], block.dense[row].tolist(), categories)
    return rows


numbers = st.one_of(
    st.just(b""),
    st.integers(-5, 300).map(lambda n: b"%d" % n),
    st.integers(0, 10**13).map(lambda n: b"%d" % n),
    st.sampled_from(
        [b"-", b"+7", b" 8 ", b"1_0", b"007", b"12a", b"1.5", b"123456789", b"12345678", b"-123456789", b"0x1", b"/", b":"]
    ),
)
categories = st.one_of(
    st.just(b""),
    st.integers(0, 2**32 - 1).map(lambda n: b"%08x" % n),
    st.integers(0, 2**32 - 1).map(lambda n: b"%08X" % n),
    st.sampled_from(
        [b"abc", b"0000000g", b"00000000", b"ffffffff", b"00000000 ", b"\xff\xfe", b"0000000", b"000000001", b"\0" * 8]
    ),
)
line = st.tuples(st.sampled_from([b"0", b"1", b"1", b"0", b"2", b"", b"-0"]), numbers, numbers, categories, categories).map(
    b"\t".join
)
lines = st.lists(st.one_of(line, line, line, st.sampled_from([b"", b"1\t2", b"\t\t\t\t\t"])), max_size=12)


@settings(max_examples=300, deadline=None)
@given(lines, st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans())
@example([], b"\n", True)
@example([b""], b"\n", True)
def test_equals_reading_line_by_line(content, ending, ended):
    text = ending.join(content) + (ending if ended and content else b"")
    count, good, bad = by_hand(text)
    block = parse_block(text, SPEC)
    assert block.lines == count
    assert [i for i, _ in block.bad] == bad
    rows = rebuilt(block)
    assert rows.keys() == good.keys()
    for i, (label, dense, keys) in good.items():
        assert rows[i][0] == label
        assert rows[i][1] == np.array(dense, np.float32).tolist()
        assert rows[i][2] == keys


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=8, max_size=8), min_size=1))
def test_hex_keys_admit_lower_case_hex_digits_only(texts):
    keys, canonical = hex_keys(np.frombuffer(b"".join(texts), "<u8"))
    for text, key, good in zip(texts, keys.tolist(), canonical.tolist()):
        assert good == all(character in b"0123456789abcdef" for character in text)
        if good:
            assert key == int(text, 16)


def test_every_single_character_of_a_key_is_checked():
    texts = [b"0" * at + bytes([c]) + b"0" * (7 - at) for at in range(8) for c in range(256)]
    keys, canonical = hex_keys(np.frombuffer(b"".join(texts), "<u8"))
    assert canonical.tolist() == [all(c in b"0123456789abcdef" for c in text) for text in texts]
    assert keys[canonical].tolist() == [int(text, 16) for text in texts if all(c in b"0123456789abcdef" for c in text)]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ((b"1", b"x", b"2", b"a", b"b"), "column 2 (a): wanted an integer. Received 'x'"),
        ((b"1", b"2", b"-", b"a", b"b"), "column 3 (b): wanted an integer. Received '-'"),
        ((b"2", b"2", b"3", b"a", b"b"), "column 1 (y): wanted 0 or 1. Received '2'"),
        ((b"", b"2", b"3", b"a", b"b"), "column 1 (y): wanted 0 or 1. Received ''"),
        ((b"1", b"2"), "wanted 5 fields. Received 2"),
        ((b"1", b"9" * 400, b"3", b"a", b"b"), "column 2 (a): wanted an integer. Received '" + "9" * 40 + "'"),
    ],
)
def test_says_what_is_wrong_with_a_line(cells, message):
    good = b"1\t2\t3\ta\tb\n"
    block = parse_block(good + b"\t".join(cells) + b"\n" + good, SPEC)
    assert block.bad == [(1, message)]
    assert block.position.tolist() == [0, 2]


def test_other_separator_float_and_skipped_columns():
    spec = FeatureSpec((("c", "categorical"), ("x", "skip"), ("f", "float"), ("y", "label"), ("d", "categorical")), separator=",")
    block = parse_block(b"u,-,1.5,1,\n,,-2e3,0,deadbeef\nu,,nan,0,v\nw,,,1,v", spec)
    assert block.label.tolist() == [1, 0, 1]
    assert block.dense.tolist() == [[1.5], [0.0], [0.0]]
    assert block.dense_missing.tolist() == [[False], [False], [True]]
    assert block.odd == [[(0, b"u"), (2, b"w")], [(2, b"v")]]
    assert block.keys[1, 1] == 0xDEADBEEF
    assert block.bad == [(2, "column 3 (f): wanted a finite number. Received 'nan'")]


def test_rows_of_a_part():
    text = b"1\t1\t2\ta\tb\nbad\n0\t3\t4\tc\t\n1\t5\t6\t\td\n"
    part = parse_block(text, SPEC).rows(1, 3)
    assert (part.lines, part.position.tolist(), part.label.tolist()) == (2, [1], [0])
    assert part.bad == [(0, "wanted 5 fields. Received 1")]
    assert part.odd == [[(0, b"c")], []]
    assert part.empty.tolist() == [[False], [True]]


def test_golden_block(golden_dir):
    """All good lines of the golden file give a block without faults."""
    block = parse_block((golden_dir / "criteo" / "train.txt").read_bytes(), CRITEO)
    assert (block.lines, len(block.label), [line for line, _ in block.bad]) == (700, 698, [17, 405])
