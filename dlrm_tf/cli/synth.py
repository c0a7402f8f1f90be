"""Writes Criteo-format rows with a learnable signal; the best AUC and logloss any model can reach are written to TSV.json."""

import argparse
import os
from typing import Union

from dlrm_tf.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf synth`."""
    parser.add_argument("-o", "--output", required=True, metavar="TSV", help="file to write")
    parser.add_argument("--rows", type=int, default=300_000, help="number of lines of a file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same file (default: %(default)s)")
    parser.add_argument(
        "--cardinalities",
        default="small",
        help="number of categories of each feature: small (207 k in all, default), criteo (33.8 M), or 26 numbers with commas",
    )
    parser.add_argument(
        "--world",
        type=int,
        default=1,
        choices=(1, 2),
        help="1: only frequent categories have effects, every day is alike; 2: rare ones have effects, too, effects and the rate "
        "of positives drift from day to day, keys are born and die (default: %(default)s)",
    )
    two = parser.add_argument_group("world 2")
    two.add_argument("--day", type=int, default=0, metavar="N", help="which day of the seed's world (default: %(default)s)")
    two.add_argument(
        "--days", type=int, metavar="N", help="write N days from --day on: LOG.tsv becomes LOG.0.tsv, LOG.1.tsv, and so on"
    )
    two.add_argument(
        "--multi-hot",
        nargs="?",
        const="some",
        metavar="SIZES",
        help="columns with several keys, such as a|b|c, and their feature spec in TSV.spec.json: four columns of up to 3 to 8 "
        "keys, or most keys of each of the 26 with commas",
    )
    two.add_argument(
        "--label-delay",
        type=float,
        default=0.0,
        metavar="DAYS",
        help="mean time after which a click is known: rows whose click is not known at the day's end have label 0, and TSV.late "
        "names them (default: every click is known at once)",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from dlrm_tf.data.synthetic import synth

    if args.days is not None and args.days < 1:
        raise UsageError(f"--days must be at least 1. Received {args.days}")
    options = {
        "seed": args.seed,
        "cardinalities": _sizes("--cardinalities", args.cardinalities),
        "world": args.world,
        "hot_sizes": None if args.multi_hot is None else _sizes("--multi-hot", args.multi_hot),
        "label_delay": args.label_delay,
    }
    stem, ending = os.path.splitext(args.output)
    for day in range(args.day, args.day + (args.days or 1)):
        path = args.output if args.days is None else f"{stem}.{day}{ending}"
        report = synth(path, args.rows, day=day, quiet=False, **options)
        print(f"{report.path}: {report.rows:,} rows, {report.positive_rate:.1%} positive")
        print(f"best AUC any model can reach: {report.best_auc:.4f}, on the last seventh {report.best_auc_test:.4f}")
        if args.world == 2:
            best, best_test = report.best_logloss, report.best_logloss_test
            print(f"best logloss any model can reach: {best:.4f}, on the last seventh {best_test:.4f}")
        if report.new_key_share is not None:
            print(f"keys that did not exist the day before: {report.new_key_share:.1%}")
        if args.label_delay:
            print(f"{report.late_positives:,} positive rows are 0 in the file: {report.path}.late")


def _sizes(flag: str, text: str) -> Union[str, list[int]]:
    """A name, or 26 numbers with commas."""
    if text.isalpha():
        return text
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} must be a name or 26 numbers with commas. Received {text!r}") from None
