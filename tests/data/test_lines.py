"""read_pieces: whole lines, every byte once, from any piece on, plain and gzip alike."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data import lines
from dlrm_tf.data.lines import read_pieces, total_bytes

text = st.lists(st.binary(max_size=30), max_size=30).map(b"\n".join)
# What begins like gzip is read as gzip.
texts = st.lists(text.filter(lambda content: not content.startswith(b"\x1f\x8b")), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(texts, st.booleans(), st.booleans(), st.integers(1, 60))
def test_pieces(tmp_path_factory, contents, packed, header, piece_bytes):
    folder = tmp_path_factory.mktemp("lines")
    paths = [folder / f"{i}.txt" for i in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "PIECE_BYTES", piece_bytes)
        pieces = list(read_pieces(paths, header=header))
        for i, content in enumerate(contents):
            body = content.split(b"\n", 1)[1] if header and b"\n" in content else b"" if header else content
            mine = [piece for piece in pieces if piece.file == i]
            assert b"".join(piece.text for piece in mine) == body
            assert all(piece.text.endswith(b"\n") for piece in mine[:-1])
            for piece in mine:
                assert content[piece.offset :].startswith(piece.text)
        for at, piece in enumerate(pieces):
            again = b"".join(other.text for other in read_pieces(paths, header=header, file=piece.file, offset=piece.offset))
            assert again == b"".join(other.text for other in pieces[at:])
        if all(any(piece.file == i for piece in pieces) for i in range(len(paths))):
            assert sum(piece.read for piece in pieces) == total_bytes(paths)
