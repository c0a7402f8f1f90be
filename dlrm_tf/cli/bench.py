"""Run the benchmarks of a source checkout: each prints a table against a named peer on the same work."""

import os
import runpy
import sys

import dlrm_tf
from dlrm_tf.errors import UsageError

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(dlrm_tf.__file__))), "benchmarks")


def add_arguments(parser):
    """Which one; its own options follow."""
    parser.add_argument("name", nargs="?", help="which benchmark; without it, those there are")
    parser.add_argument("options", nargs="...", help="the benchmark's own options (NAME --help)")


def run(args):
    """Runs one benchmark in this process, or lists them."""
    names = sorted(n[: -len(".py")] for n in os.listdir(FOLDER) if n.endswith(".py")) if os.path.isdir(FOLDER) else []
    if not names:
        raise UsageError(f"bench: there is no {FOLDER}: benchmarks come with the source checkout, not with the package")
    if args.name is None:
        print("\n".join(names))
        return
    if args.name not in names:
        raise UsageError(f"bench: wanted one of {', '.join(names)}. Received {args.name!r}")
    path = os.path.join(FOLDER, f"{args.name}.py")
    sys.argv = [path, *args.options]
    sys.path.insert(0, FOLDER)
    runpy.run_path(path, run_name="__main__")
