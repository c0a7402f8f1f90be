"""Downloads the MindSpore Hub's DLRM checkpoint (about 6 GB): resumes where it stopped, checks the sha256."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf fetch`."""
    parser.add_argument("-o", "--output", metavar="FILE", help="file to write; default: the URL's last part, in this folder")
    parser.add_argument("--url", action="append", help="a mirror (http, https); may be given several times; default: the Hub")
    parser.add_argument("--sha256", metavar="HEX", help="what the content must hash to; default: the Hub checkpoint's")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    import posixpath
    import urllib.parse

    from dlrm_tf.checkpoints.fetch import HUB_URL, fetch
    from dlrm_tf.checkpoints.file_sha256 import HUB_SHA256
    from dlrm_tf.errors import UsageError

    urls = args.url or [HUB_URL]
    target = args.output or posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(urls[0]).path))
    if not target or target in (".", ".."):
        raise UsageError(f"{urls[0]}: the URL names no file: say where to write it with -o")
    came_from = fetch(target, urls=urls, sha256=args.sha256 or HUB_SHA256)
    print(f"{target}: sha256 right, {'from ' + came_from if came_from else 'was there already'}")
