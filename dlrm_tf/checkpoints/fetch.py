"""`fetch`: downloads the Hub's checkpoint; resumes after a cut, checks the sha256, leaves a whole file or none."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from dlrm_tf import __version__
from dlrm_tf.checkpoints.file_sha256 import HUB_SHA256, write_note
from dlrm_tf.errors import CheckpointError, DLRMError, UsageError
from dlrm_tf.files import StrPath, atomic_file, sha256_file
from dlrm_tf.progress import Progress

HUB_URL = "https://download.mindspore.cn/models/r1.3/dlrm_ascend_v130_criteo_research_recommend_acc78.96.ckpt"
BLOCK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0
# A connection that receives less than this over TIMEOUT_SECONDS is closed.
MIN_BYTES_A_SECOND = 1000
# After this many attempts in a row that each receive less than a block, the next URL is tried.
TRIES = 5
# None for file: and ftp:, so that a redirect can't lead there.
_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
)


class _Cut(Exception):
    """A connection ended too early, stalled, or sent nothing usable; `final` if another attempt can't succeed."""

    def __init__(self, what: str, *, final: bool = False) -> None:
        super().__init__(what)
        self.final = final


def fetch(
    target: StrPath,
    *,
    urls: Sequence[str] = (HUB_URL,),
    sha256: str = HUB_SHA256,
    timeout: float = TIMEOUT_SECONDS,
    pause: float = 1.0,
    quiet: bool = False,
) -> str:
    """Downloads a file and checks its sha256.

    What was received stays in `.NAME.SHA.part` beside the target until the file is complete; the next call resumes from there.
    The variables http_proxy, https_proxy and no_proxy are obeyed. The sha256 is noted in `NAME.sha256`, for `convert` and
    `inspect`.

    Args:
      target: file to write.
      urls: where to find it, tried in this order (http or https).
      sha256: hex digest the content must have.
      timeout: seconds; a connection that received nothing, or less than 1 kB a second, for this long is closed and retried.
      pause: seconds before the first retry; each further pause is twice as long.
      quiet: show no progress.

    Returns:
      The URL it came from, or `""` if the target was there already.

    Raises:
      CheckpointError: the content at every URL has another sha256.
      DLRMError: no URL could be read to the end, no room on the disk, or another fetch of the same file is running.
      UsageError: a URL is neither http nor https, or `sha256` is not 64 hex digits.
    """
    target = os.path.abspath(os.fspath(target))
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError(f"sha256 must be 64 hex digits. Received {sha256!r}")
    for url in urls:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise UsageError(f"a URL must start with http:// or https://. Received {url!r}")
    if os.path.exists(target):
        stat = os.stat(target)
        if sha256_file(target, quiet=quiet) == sha256:  # hashed even if there is a note, which may be of another file
            write_note(target, sha256, stat)
            return ""
        raise DLRMError(f"{target}: wanted sha256 {sha256}. Received another file: remove it, or choose another name (-o)")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = os.path.join(os.path.dirname(target), f".{os.path.basename(target)}.{sha256[:12]}.part")
    failures = []
    with _locked(part) as out:
        download = _Download(out, os.path.dirname(target), timeout, pause, quiet)
        for url in urls:
            try:
                received = download.run(url)
                if received != sha256 and download.resumed:  # the part file of an earlier call may have been wrong
                    out.truncate(0)
                    received = download.run(url)
            except _Cut as e:
                failures.append(f"{url}: {e}")
                continue
            if received == sha256:
                with atomic_file(target) as temporary:
                    os.replace(part, temporary)
                write_note(target, sha256, os.fstat(out.fileno()))
                return url
            out.truncate(0)
            failures.append(f"{url}: wanted sha256 {sha256}. Received {received}")
        if not os.fstat(out.fileno()).st_size:
            os.unlink(part)
    if any("wanted sha256" in failure for failure in failures):
        raise CheckpointError(f"not the file wanted: {'; '.join(failures)}")
    raise DLRMError(f"could not download: {'; '.join(failures)}; what was received is kept, the same command resumes from there")


@contextlib.contextmanager
def _locked(part: str) -> Iterator[BinaryIO]:
    """The part file, opened for reading and writing and locked against another fetch."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with open(fd, "r+b", buffering=0) as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise DLRMError(f"{part}: another fetch of this file is running") from e
        yield out


class _Download:
    """Completes a part file and hashes its content.

    Args:
      out: the part file, open for reading and writing.
      folder: where it is.
      timeout: seconds; a connection that received nothing, or less than 1 kB a second, for this long is closed and retried.
      pause: seconds before the first retry; each further pause is twice as long.
      quiet: show no progress.

    Attributes:
      have: bytes in the part file.
      digest: sha256 of them.
      resumed: whether the last `run` put the file together from more than one connection.
    """

    def __init__(self, out: BinaryIO, folder: str, timeout: float, pause: float, quiet: bool) -> None:
        self.out, self.folder, self.timeout, self.pause, self.quiet = out, folder, timeout, pause, quiet
        self.opener = urllib.request.OpenerDirector()
        for handler in _HANDLERS:
            self.opener.add_handler(handler())

    def run(self, url: str) -> str:
        """Reads `url` to its end; returns the sha256 of the whole part file.

        Raises:
          _Cut: the URL was given up; the part file keeps what was received.
        """
        with Progress("fetch", unit="B", quiet=self.quiet) as self.progress:
            self._rehash()
            self.resumed = self.have > 0
            tries, furthest = 0, self.have
            while True:
                try:
                    self._one_connection(url)
                    return self.digest.hexdigest()
                except _Cut as e:
                    gained = self.have >= furthest + BLOCK_BYTES
                    furthest = max(furthest, self.have)
                    tries = 1 if gained else tries + 1
                    if tries >= TRIES or e.final:
                        raise _Cut(f"{e}, after {self.have:,} bytes") from e
                    time.sleep(self.pause * 2 ** (tries - 1))

    def _rehash(self) -> None:
        """Starts from what the part file holds."""
        self.progress.update(-self.progress.done)
        self.digest, self.have = hashlib.sha256(), 0
        self.out.seek(0)
        while block := self.out.read(BLOCK_BYTES):
            self._count(block)

    def _count(self, block: bytes) -> None:
        self.digest.update(block)
        self.have += len(block)
        self.progress.update(len(block))

    def _one_connection(self, url: str) -> None:
        headers = {"User-Agent": f"dlrm_tf/{__version__}", "Accept-Encoding": "identity"}
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
        try:
            with self.opener.open(urllib.request.Request(url, headers=headers), timeout=self.timeout) as answer:
                self.progress.total = total = self._total(answer)
                free = shutil.disk_usage(self.folder).free
                if free < total - self.have:
                    raise DLRMError(f"needs {(total - self.have) / 1e9:.2f} GB more, {self.folder} has {free / 1e9:.2f} GB free")
                self._receive(answer, total)
        except urllib.error.HTTPError as e:
            e.close()
            if e.code == 416 and e.headers.get("Content-Range", "") == f"bytes */{self.have}":
                return  # it was complete already
            if e.code == 416:  # the part file is longer than the server's file
                self._restart()
                raise _Cut("the server has less than was received before") from e
            final = e.code < 500 and e.code not in (408, 429)
            raise _Cut(f"HTTP {e.code} {' '.join(str(e.reason).split())}", final=final) from e
        except (OSError, http.client.HTTPException) as e:
            raise _Cut(str(getattr(e, "reason", e)) or type(e).__name__) from e

    def _total(self, answer: Any) -> int:
        """Size of the whole file as the answer tells it; empties the part file unless the answer continues it."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise _Cut(f"the server sends it {answer.headers['Content-Encoding']}-encoded", final=True)
        length = answer.headers.get("Content-Length")
        if answer.status == 206:
            told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if not told or int(told[1]) != self.have:
                self._restart()
                raise _Cut(f"asked for the rest. Received range {answer.headers.get('Content-Range')!r}")
            self.resumed = True
            return int(told[2])
        if answer.status != 200:
            raise _Cut(f"HTTP {answer.status}", final=True)
        self._restart()  # the answer is the whole file
        if not length or not length.isdigit():
            raise _Cut("the server does not send the file's size", final=True)
        return int(length)

    def _restart(self) -> None:
        self.out.truncate(0)
        self._rehash()

    def _receive(self, answer: Any, total: int) -> None:
        mark, marked = time.monotonic(), self.have
        while block := answer.read1(BLOCK_BYTES):
            if self.have + len(block) > total:
                raise _Cut(f"the server sent more than the {total:,} bytes it promised", final=True)
            self._write(block)
            now = time.monotonic()
            if now - mark >= self.timeout:
                if self.have - marked < MIN_BYTES_A_SECOND * (now - mark):
                    raise _Cut(f"received less than {MIN_BYTES_A_SECOND} bytes a second for {now - mark:.0f} s")
                mark, marked = now, self.have
        if self.have < total:
            raise _Cut(f"the connection ended {total - self.have:,} bytes too early")

    def _write(self, block: bytes) -> None:
        view = memoryview(block)
        try:
            while view:
                view = view[self.out.write(view) :]
        except OSError as e:
            raise DLRMError(f"{self.folder}: cannot write what was received: {e.strerror}") from e
        self._count(block)
