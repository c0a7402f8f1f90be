"""Options of the verbs that read raw logs: what of a feature spec can be said on the command line."""

import argparse
import dataclasses
from typing import Any

from dlrm_tf.data.text_format import LABELS


def add_text_arguments(parser: argparse.ArgumentParser, *, labels: bool = True) -> None:
    """Adds the options.

    Args:
      parser: of the verb.
      labels: whether the verb reads labels.
    """
    parser.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="TEXT",
        help=r"a cell with this text is empty, such as NULL or '\N'; may be given several times, and adds to those of the spec",
    )
    if not labels:
        return
    negative = "-1/1"
    pairs = tuple(LABELS)
    parser.add_argument(
        "--labels", nargs="?", const=pairs[0], choices=pairs, help="how labels are written (default: as the spec says, else 0/1)"
    )
    # argparse takes what begins with - for an option; so it is one, that comes after --labels.
    parser.add_argument(negative, dest="labels", action="store_const", const=negative, help=argparse.SUPPRESS)


def text_spec(args: argparse.Namespace) -> Any:
    """The `FeatureSpec` of `--spec`, else Criteo Kaggle's, with what the other options say."""
    from dlrm_tf.data.spec import CRITEO, FeatureSpec

    spec = FeatureSpec.read(args.spec) if args.spec else CRITEO
    changes: dict[str, Any] = {}
    if args.missing:
        changes["missing"] = (*spec.missing, *(text for text in args.missing if text not in spec.missing))
    if getattr(args, "labels", None):
        changes["labels"] = args.labels
    return dataclasses.replace(spec, **changes)
