"""sha256 of checkpoints, and which known checkpoint one is."""

import hashlib
import os

from dlrm_tf.files import atomic_file
from dlrm_tf.progress import Progress

# sha256 -> what it is (https://download.mindspore.cn/models/r1.3/).
HUB_SHA256 = "b4e9982c2c18458c30eee7cd2f791fd28e62244de12c45cef813940e418a89f4"
KNOWN = {HUB_SHA256: "dlrm_ascend_v130_criteo_research_recommend_acc78.96.ckpt of the MindSpore Hub"}
# Hashing less than this takes a moment; a larger file is hashed only on request.
CHEAP_BYTES = 64 << 20
_BLOCK_BYTES = 4 << 20


def sha256_file(path, quiet: bool = True) -> str:
    """sha256 (hex) of a file, read once."""
    digest = hashlib.sha256()
    with open(path, "rb") as f, Progress("sha256", total=os.path.getsize(path), unit="B", quiet=quiet) as progress:
        while True:
            block = f.read(_BLOCK_BYTES)
            if not block:
                return digest.hexdigest()
            digest.update(block)
            progress.update(len(block))


def write_note(path, sha256: str) -> None:
    """Notes the sha256 of a file beside it."""
    with atomic_file(f"{path}.sha256") as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.write(f"{sha256}  {os.path.basename(path)}\n")


def known_sha256(path) -> str:
    """sha256 of a file when it is cheap to know: a small file's own, or the one `fetch` noted beside it; else `""`.

    The note (`FILE.sha256`, as the program sha256sum writes it) counts only while it is newer than the file.
    """
    if os.path.getsize(path) <= CHEAP_BYTES:
        return sha256_file(path)
    note = f"{path}.sha256"
    try:
        if os.path.getmtime(note) < os.path.getmtime(path):
            return ""
        with open(note, encoding="utf-8") as f:
            noted, _, name = f.read(4096).strip().partition("  ")
    except (OSError, UnicodeDecodeError):
        return ""
    valid = len(noted) == 64 and not set(noted) - set("0123456789abcdef") and name == os.path.basename(path)
    return noted if valid else ""
