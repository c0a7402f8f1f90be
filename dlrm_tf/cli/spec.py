"""Looks at a sample of a log and writes a feature spec to edit, which prepare takes: kinds, distinct values, label, format."""

import argparse
import json
import os
import shlex

from dlrm_tf.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf spec`."""
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="files, folders, patterns or URLs, as for prepare")
    parser.add_argument("-o", "--output", default="spec.json", metavar="JSON", help="file to write (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the file where it is there already")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from dlrm_tf.data.guess.spec import guess_spec
    from dlrm_tf.files import write_file

    if os.path.exists(args.output) and not args.force:  # it may have been edited
        raise UsageError(f"{args.output}: wanted a new file. Received one that is there: give another -o, or --force")
    guess = guess_spec(args.inputs)
    print(guess)
    write_file(args.output, json.dumps(guess.spec.to_dict(), indent=1) + "\n")
    inputs = shlex.join(args.inputs)
    print(f"written: {args.output}; look at it, then: dlrm-tf prepare {inputs} --spec {shlex.quote(args.output)} -o data")
