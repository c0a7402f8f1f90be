"""TextReader: whole lines, every byte once, from any piece on, plain and gzip alike."""

import dataclasses
import gzip
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data.readers import text as module
from dlrm_tf.data.readers.compression import HEAD_BYTES, check_text, compression_of
from dlrm_tf.data.readers.text import TextReader
from dlrm_tf.data.spec import CRITEO
from dlrm_tf.errors import DataError


def is_text(content):
    """Whether no first bytes say that it is packed, of another kind, or begins with a mark."""
    try:
        check_text(content[:HEAD_BYTES], "")
    except DataError:
        return False
    return not compression_of(content[:HEAD_BYTES]) and not content.startswith(b"\xef\xbb\xbf")


text = st.lists(st.binary(max_size=30), max_size=30).map(b"\n".join)


@settings(max_examples=100, deadline=None)
@given(text.filter(is_text), st.booleans(), st.booleans(), st.integers(1, 60))
def test_pieces(tmp_path_factory, content, packed, header, piece_bytes):
    path = tmp_path_factory.mktemp("lines") / "log.txt"
    path.write_bytes(gzip.compress(content) if packed else content)
    reader = TextReader(str(path), dataclasses.replace(CRITEO, header="skip" if header else False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece_bytes)
        pieces = list(reader.pieces())
        body = re.split(rb"\r\n|\n|\r", content, maxsplit=1)[1:] if header else [content]
        assert b"".join(piece.content for piece in pieces) == b"".join(body)
        assert all(piece.content.endswith(b"\n") for piece in pieces[:-1])
        for at, piece in enumerate(pieces):
            assert content[piece.offset :].startswith(piece.content)
            again = b"".join(other.content for other in reader.pieces(piece.offset))
            assert again == b"".join(other.content for other in pieces[at:])
        if pieces:
            assert sum(piece.read for piece in pieces) == reader.size
