"""Storage: the same bytes, sizes and refusals from a local file, fsspec's memory and a web server."""

import pytest
from web_server import serve_folder

from dlrm_tf.data.readers.storage import identity_of, open_bytes, size_of
from dlrm_tf.errors import DataError, DLRMError, MissingExtraError

fsspec = pytest.importorskip("fsspec")
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def web(tmp_path):
    """`(folder, its URL)`."""
    folder = tmp_path / "web"
    folder.mkdir()
    with serve_folder(folder) as url:
        yield folder, url


@pytest.fixture(params=["local", "memory", "http"])
def stored(request, tmp_path):
    """`(path of CONTENT, function that replaces it)`."""
    if request.param == "memory":
        fsspec.filesystem("memory").pipe("/storage/log", CONTENT)
        yield "memory://storage/log", lambda content: fsspec.filesystem("memory").pipe("/storage/log", content)
        fsspec.filesystem("memory").rm("/storage", recursive=True)
    elif request.param == "http":
        pytest.importorskip("aiohttp")
        folder, url = request.getfixturevalue("web")
        (folder / "log").write_bytes(CONTENT)
        yield f"{url}/log", (folder / "log").write_bytes
    else:
        (tmp_path / "log").write_bytes(CONTENT)
        yield str(tmp_path / "log"), (tmp_path / "log").write_bytes


def test_reads_and_seeks(stored):
    path, _ = stored
    assert size_of(path) == len(CONTENT)
    with open_bytes(path) as file:
        assert file.read(10) == CONTENT[:10]
        assert (file.seek(200_000), file.tell(), file.read(300)) == (200_000, 200_000, CONTENT[200_000:200_300])
        assert (file.seek(-5, 2), file.read()) == (len(CONTENT) - 5, CONTENT[-5:])
        assert (file.seek(0), file.read()) == (0, CONTENT)


def test_identity_changes_with_the_content(stored):
    path, replace = stored
    before = identity_of(path)
    assert before == identity_of(path)
    replace(CONTENT[:-1])
    assert before != identity_of(path)


@pytest.mark.parametrize("call", [open_bytes, size_of, identity_of])
def test_no_such_input(call, web, tmp_path):
    for path in (str(tmp_path / "none"), "memory://none/log", f"{web[1]}/none"):
        with pytest.raises(FileNotFoundError) as error:
            call(path)
        assert error.value.filename == path


def test_what_is_refused(web, tmp_path):
    with pytest.raises(DataError, match="wanted a file. Received a folder"):
        open_bytes(str(tmp_path))
    fsspec.filesystem("memory").pipe("/storage/folder/log", b"")
    with pytest.raises(DataError, match="memory://storage/folder: wanted a file. Received a folder"):
        open_bytes("memory://storage/folder")
    fsspec.filesystem("memory").rm("/storage", recursive=True)
    with pytest.raises(DLRMError, match="abc://x: can't be read .*Protocol not known"):
        open_bytes("abc://x")
    (web[0] / "no_size").write_bytes(b"text")
    with pytest.raises(DataError, match="no_size: wanted a server that says the size"):
        open_bytes(f"{web[1]}/no_size")
    (web[0] / "broken").write_bytes(b"text")
    with pytest.raises(DLRMError, match="broken: can't be read .*503"):
        open_bytes(f"{web[1]}/broken").read()


def test_says_which_package_a_protocol_needs():
    with pytest.raises(MissingExtraError, match="s3://bucket/log: .*s3fs"):
        try:
            import s3fs  # noqa: F401
        except ImportError:
            open_bytes("s3://bucket/log")
        else:
            pytest.skip("s3fs is installed")
