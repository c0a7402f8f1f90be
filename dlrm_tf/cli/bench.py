"""Run the benchmarks of a source checkout: each prints a table against a named peer on the same work."""

import pathlib
import runpy
import sys

import dlrm_tf
from dlrm_tf.errors import UsageError

FOLDER = pathlib.Path(dlrm_tf.__file__).resolve().parent.parent / "benchmarks"


def add_arguments(parser):
    """Which one; its own options follow."""
    parser.add_argument("name", nargs="?", help="which benchmark; without a name they are listed")
    parser.add_argument("options", nargs="...", help="the benchmark's own options (NAME --help)")


def run(args):
    """Runs one benchmark in this process, or lists them."""
    # The other files there are what benchmarks share.
    names = sorted(path.stem for path in FOLDER.glob("*.py") if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8"))
    if not names:
        raise UsageError(f"bench: wanted a source checkout, whose benchmarks are not in the package. Received no {FOLDER}")
    if args.name is None:
        print("\n".join(names))
        return
    if args.name not in names:
        raise UsageError(f"bench: wanted one of {', '.join(names)}. Received {args.name!r}")
    path = str(FOLDER / f"{args.name}.py")
    sys.argv = [path, *args.options]
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(path, run_name="__main__")
