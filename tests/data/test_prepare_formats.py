"""The same rows in any form of text give the same bytes; what can't be read so is refused on one line."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile

import pytest
from web_server import serve_folder

from dlrm_tf import prepare
from dlrm_tf.data.readers import text as reading
from dlrm_tf.data.records import Records
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.errors import DataError

SHARD_LINES = 64
BOM = b"\xef\xbb\xbf"


def made(folder):
    """The files of prepared data; of the manifest what does not depend on how the log is written."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    del manifest["spec"], manifest["counts"]["bad_examples"]
    return files, manifest


@pytest.fixture(scope="module")
def log(golden_dir):
    """Lines of the golden log; two of them bad."""
    return (golden_dir / "criteo" / "train.txt").read_bytes().splitlines()


@pytest.fixture(scope="module")
def expected(golden_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "out"
    prepare(golden_dir / "criteo" / "train.txt", folder, shard_lines=SHARD_LINES)
    return made(folder)


def zstd(content):
    zstandard = pytest.importorskip("zstandard")
    frames = [zstandard.compress(part) for part in (content[:9999], b"", content[9999:])]
    return b"\x50\x2a\x4d\x18\x03\0\0\0abc" + b"".join(frames)  # a frame to be skipped, as pzstd writes, and three with data


PACKED = {
    "plain": lambda content: BOM + content,
    "gzip": lambda content: gzip.compress(content[:5000]) + gzip.compress(content[5000:]),
    "bz2": lambda content: bz2.compress(content[:5000]) + bz2.compress(content[5000:]),
    "xz": lambda content: lzma.compress(content),
    "zstd": zstd,
}


@pytest.mark.parametrize("packed", PACKED)
def test_compressed(log, expected, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE_BYTES", 3000)
    (tmp_path / "log").write_bytes(PACKED[packed](b"\n".join(log) + b"\n"))
    prepare(tmp_path / "log", tmp_path / "out", shard_lines=SHARD_LINES)
    assert made(tmp_path / "out") == expected
    # From any piece on it is read to the same end.
    reader = reading.TextReader(str(tmp_path / "log"), CRITEO)
    pieces = list(reader.pieces())
    again = list(reader.pieces(pieces[7].offset))
    assert b"".join(piece.content for piece in again) == b"".join(piece.content for piece in pieces[7:])


def write_csv(path, log, style):
    """The log as CSV whose fields all are quoted; with names, its columns stand in another order beside a foreign one."""
    named, escape = style != "positions", "\\" if style == "escaped names" else None
    order = [40, *range(20, 40), 0, *range(1, 20)] if named else range(40)
    names = [name for name, _ in CRITEO.columns] + ['a "foreign", one']
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, escapechar=escape, doublequote=escape is None)
    if named:
        writer.writerow([names[i] for i in order])
    for line in log:
        cells = line.decode().split("\t")
        whole = len(cells) == 40
        writer.writerow([[*cells, "x\r\n,\"'"][i] for i in order] if whole else cells)
    path.write_bytes(BOM * named + file.getvalue().encode())
    return FeatureSpec(CRITEO.columns, ",", named, '"', escape)


@pytest.mark.parametrize("style", ["positions", "names", "escaped names"])
def test_csv(log, expected, style, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE_BYTES", 5000)
    spec = write_csv(tmp_path / "log.csv", log, style)
    prepare(tmp_path / "log.csv", tmp_path / "out", spec=spec, shard_lines=SHARD_LINES)
    assert made(tmp_path / "out") == expected


def write_parts(folder, log):
    """The log in three files whose order is that of numbers, beside files that are none of it."""
    (folder / "day=1").mkdir()
    for name, lines in (("day_2", log[:100]), ("day_10", log[100:300]), ("day=1/part", log[300:])):
        (folder / name).write_bytes(b"\n".join(lines))
    for other in (".part.crc", "_SUCCESS", "day=1/_log"):
        (folder / other).write_bytes(b"no line of the log")


@pytest.mark.parametrize("named", ["folder", "pattern", "memory folder", "memory pattern", "web"])
def test_several_files(log, expected, named, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    folder = tmp_path / "logs"
    folder.mkdir()
    write_parts(folder, log)
    parts = [folder / "day_2", folder / "day_10", folder / "day=1" / "part"]
    with contextlib.ExitStack() as stack:
        if named.startswith("memory"):
            memory = fsspec.filesystem("memory")
            memory.put(str(folder), "/logs", recursive=True)
            stack.callback(memory.rm, "/logs", recursive=True)
            inputs = ["memory://logs"] if named == "memory folder" else ["memory://logs/day_*", "memory://logs/day=*"]
        elif named == "web":
            pytest.importorskip("aiohttp")
            url = stack.enter_context(serve_folder(folder))
            inputs = [f"{url}/{path.relative_to(folder)}" for path in parts]
        else:
            inputs = folder if named == "folder" else [f"{folder}/day_*", f"{folder}/day=*"]
        if "folder" in named:  # day=1 comes before day_2 in a folder
            prepare([parts[2], parts[0], parts[1]], tmp_path / "one by one", shard_lines=SHARD_LINES)
            expected = made(tmp_path / "one by one")
        prepare(inputs, tmp_path / "out", shard_lines=SHARD_LINES)
    assert made(tmp_path / "out") == expected


COMMAND = [sys.executable, "-m", "dlrm_tf", "prepare", "-o"]


def test_standard_input_starts_again(log, expected, golden_dir, tmp_path):
    """What is read once only: a job that was killed leaves nothing that a second one would take for its own."""
    content = gzip.compress(b"\n".join(log))
    out = tmp_path / "out"
    child = "import os, signal; os.unlink = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nfrom dlrm_tf import prepare\n"
    killed = subprocess.run([sys.executable, "-c", f"{child}prepare('-', {str(out)!r})"], input=content)
    assert killed.returncode == -signal.SIGKILL
    assert (out / "test" / "00000.bin").exists() and not (out / "manifest.json").exists()  # it was in its last steps
    with pytest.raises(DataError, match="interrupted prepare with other inputs"):
        prepare(golden_dir / "criteo" / "train.txt", out)
    reader, writer = os.pipe()
    script = f"from dlrm_tf import prepare; prepare('-', {str(out)!r}, shard_lines={1 << 17})"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=reader)
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:  # other rows than the first time, in small parts
        for at in range(0, len(log), 50):
            pipe.write(b"\n".join(log[at : at + 50]) + b"\n")
            pipe.flush()
    assert process.wait() == 0
    assert Records.open(out).manifest["counts"]["lines"] == 700
    Records.open(out).verify()
    assert made(out)[0]["vocabulary.npz"] == expected[0]["vocabulary.npz"]


def test_named_pipe(log, expected, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"\n".join(log),))
    writer.start()
    prepare(tmp_path / "pipe", tmp_path / "out", shard_lines=SHARD_LINES)
    writer.join()
    assert made(tmp_path / "out") == expected


CHILD = """
import os, signal, sys
from dlrm_tf.data.readers import text
text.PIECE_BYTES = 5000
left, replace = 9, os.replace
def dying(*args):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(*args)
os.replace = dying
from dlrm_tf import FeatureSpec, prepare
prepare(sys.argv[1], sys.argv[2], spec=FeatureSpec.load(sys.argv[3]), shard_lines=64)
"""


def test_a_killed_job_goes_on_in_compressed_csv(log, expected, tmp_path, monkeypatch):
    spec = write_csv(tmp_path / "log.csv", log, "names")
    packed, out = tmp_path / "log.csv.zst", tmp_path / "out"
    packed.write_bytes(zstd((tmp_path / "log.csv").read_bytes()))
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    killed = subprocess.run([sys.executable, "-c", CHILD, packed, out, tmp_path / "spec.json"])
    assert killed.returncode == -signal.SIGKILL
    kept = len(list(out.glob(".prepare/0*.npz")))
    assert kept >= 3
    parsed, parse = [], reading.parse_block
    monkeypatch.setattr(reading, "parse_block", lambda *args, **kwargs: parsed.append(parse(*args, **kwargs)) or parsed[-1])
    prepare(packed, out, spec=spec, shard_lines=SHARD_LINES)
    assert made(out) == expected
    assert sum(block.lines for block in parsed) <= 700 - (kept - 1) * SHARD_LINES


def tar(content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("log")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("log", content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (zipped, "wanted text in UTF-8. Received a zip archive; unpack it, or pipe it: unzip -p FILE"),
        (tar, "wanted text in UTF-8. Received a tar archive"),
        (lambda content: gzip.compress(tar(content)), "wanted text in UTF-8. Received a tar archive"),
        (lambda content: content.decode().encode("utf-16"), "wanted text in UTF-8. Received text in UTF-16; convert it: iconv"),
        (lambda content: bz2.compress(content.decode().encode("utf-16")), "wanted text in UTF-8. Received text in UTF-16"),
        (lambda content: gzip.compress(content)[:-30], r"damaged gzip file \(it is cut off\)"),
        (lambda content: bz2.compress(content)[:-30], r"damaged bz2 file \(it is cut off\)"),
        (lambda content: lzma.compress(content)[:-30], r"damaged xz file \(it is cut off\)"),
        (lambda content: zstd(content)[:-30], r"damaged zstd file \(it is cut off\)"),
        (lambda content: gzip.compress(content) + b"more", r"damaged gzip file \(Not a gzipped file"),
        (lambda content: bz2.compress(content)[:900] + bytes(900), r"damaged bz2 file \("),
        (lambda content: lzma.compress(content)[:900] + bytes(900), r"damaged xz file \("),
        (lambda content: zstd(content)[:900] + bytes(900), r"damaged zstd file \("),
    ],
)
def test_foreign_and_damaged_files(log, damage, message, tmp_path):
    (tmp_path / "log.tsv").write_bytes(damage(b"\n".join(log)))
    with pytest.raises(DataError, match=rf"log\.tsv: {message}"):
        prepare(tmp_path / "log.tsv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_named_twice_or_not_at_all(tmp_path):
    log, folder = tmp_path / "log.tsv", tmp_path / "empty"
    log.write_bytes(b"")
    folder.mkdir()
    (folder / "_SUCCESS").write_bytes(b"")
    for inputs, message in (
        ([log, log], "log.tsv: wanted each input once. Received it twice$"),
        ([f"{tmp_path}/*.tsv", f"{tmp_path}/empty/../log.tsv"], r"log.tsv: wanted each .* twice, also as .*/log.tsv$"),
        (["-", "-"], "-: wanted each input once"),
        (folder, r"empty: wanted files. Received none \(names that begin with . or _ are left out\)"),
        (f"{tmp_path}/*.csv", r"\*.csv: wanted files. Received none"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(inputs, tmp_path / "out")
    (tmp_path / "day[1].tsv").write_bytes(b"0\t" + b"\t" * 38 + b"\n")  # a file of that name, not a pattern
    assert prepare(tmp_path / "day[1].tsv", tmp_path / "out", test_fraction=0).rows("train") == 1


def test_a_pattern_of_urls_without_files(tmp_path):
    pytest.importorskip("fsspec")
    with pytest.raises(DataError, match=r"memory://none/\*: wanted files. Received none"):
        prepare("memory://none/*", tmp_path / "out")


SMALL = FeatureSpec((("y", "label"), ("n", "int"), ("s", "skip"), ("c", "categorical")), ",", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y,n,d\n1,2,a\n", r"log.csv: header: wanted a column 'c'. Received y, n, d; \"header\": \"skip\" in the spec passes"),
        ("y,c,n,c\n1,2,a,b\n", "log.csv: header: wanted one column 'c'. Received y, c, n, c"),
        ("y, n, c\n1,2,a\n", r"log.csv: header: wanted a column 'n'. Received y, ' n', ' c'; "),
        ("c,n\na,2\n", "log.csv: header: wanted a column 'y'. Received c, n"),
        ('"y","n","c"\n1,2,"a"\n', r"log.csv: header: wanted a column 'n'. Received .*; \"quote\" in the spec says"),
    ],
)
def test_columns_that_a_header_lacks(text, message, tmp_path):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "log.csv", tmp_path / "out", spec=SMALL)
    assert not (tmp_path / "out").exists()
