"""The sha256 of a checkpoint file, the note of it that `fetch` writes to `FILE.sha256`, and the checkpoints known by it."""

import os

from dlrm_tf.files import StrPath, sha256_file, write_file

# sha256 -> what it is (https://download.mindspore.cn/models/r1.3/).
HUB_SHA256 = "b4e9982c2c18458c30eee7cd2f791fd28e62244de12c45cef813940e418a89f4"
KNOWN = {HUB_SHA256: "dlrm_ascend_v130_criteo_research_recommend_acc78.96.ckpt of the MindSpore Hub"}
# A file up to this size is hashed in a moment; a larger one only on request.
CHEAP_BYTES = 64 << 20


def write_note(path: StrPath, sha256: str, stat: os.stat_result) -> None:
    """Writes the sha256 of a file to `FILE.sha256`, which `sha256sum -c FILE.sha256` reads, too.

    Args:
      path: the file.
      sha256: its sha256 (hex).
      stat: the file's size and time from before it was hashed: if it changes meanwhile, the note does not count.
    """
    write_file(f"{os.fspath(path)}.sha256", _note(path, sha256, stat))


def _note(path: StrPath, sha256: str, stat: os.stat_result) -> str:
    # sha256sum skips lines that begin with "#".
    return f"{sha256}  {os.path.basename(path)}\n# size {stat.st_size} mtime_ns {stat.st_mtime_ns}\n"


def known_sha256(path: StrPath) -> str:
    """sha256 (hex) of a file when it is cheap to know: a small file's own, or the one noted beside it; else `""`.

    The note counts only while the file has exactly the size and modification time (ns) written in it. That the note is the
    newer of the two proves nothing, as `mv` and `cp -p` bring older files.

    Args:
      path: the file.
    """
    stat = os.stat(path)
    if stat.st_size <= CHEAP_BYTES:
        return sha256_file(path)
    try:
        with open(f"{os.fspath(path)}.sha256", encoding="utf-8") as f:
            text = f.read(4096)
    except (OSError, UnicodeDecodeError):
        return ""
    noted = text[:64]
    return noted if not set(noted) - set("0123456789abcdef") and text == _note(path, noted, stat) else ""
