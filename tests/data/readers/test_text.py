"""TextReader: whole lines, every byte once, from any piece on, plain and gzip alike."""

import dataclasses
import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data.readers import text as module
from dlrm_tf.data.readers.text import TextReader
from dlrm_tf.data.spec import CRITEO

text = st.lists(st.binary(max_size=30), max_size=30).map(b"\n".join)


@settings(max_examples=100, deadline=None)
@given(text.filter(lambda content: not content.startswith(b"\x1f\x8b")), st.booleans(), st.booleans(), st.integers(1, 60))
def test_pieces(tmp_path_factory, content, packed, header, piece_bytes):
    path = tmp_path_factory.mktemp("lines") / "log.txt"
    path.write_bytes(gzip.compress(content) if packed else content)
    reader = TextReader(str(path), dataclasses.replace(CRITEO, header=header))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece_bytes)
        pieces = list(reader.pieces())
        body = content.split(b"\n", 1)[1] if header and b"\n" in content else b"" if header else content
        assert b"".join(piece.content for piece in pieces) == body
        assert all(piece.content.endswith(b"\n") for piece in pieces[:-1])
        for at, piece in enumerate(pieces):
            assert content[piece.offset :].startswith(piece.content)
            again = b"".join(other.content for other in reader.pieces(piece.offset))
            assert again == b"".join(other.content for other in pieces[at:])
        if pieces:
            assert sum(piece.read for piece in pieces) == reader.size
