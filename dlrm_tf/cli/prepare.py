"""Converts raw Criteo TSV (or another log, with --spec) to records, manifest and vocabulary. An interrupted run is resumed."""

import argparse

from dlrm_tf.cli.text_options import add_text_arguments, text_spec
from dlrm_tf.data.bad_lines import MAX_SHARE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf prepare`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="LOG",
        help="raw files, taken in order as one log: plain or compressed (gzip, zstd, bz2, xz); folders, patterns ('day_*'), URLs "
        "(s3://, gs://, http://, ...; need fsspec), - for standard input",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to make, or an interrupted one to finish")
    parser.add_argument(
        "--spec",
        metavar="SPEC",
        help="columns of the log: criteo_kaggle (the default), criteo_1tb, avazu, or a JSON file, which dlrm-tf spec writes",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="use these ids: a vocabulary.npz, or upstream's cat_count_dict.pkl; others are OOV",
    )
    parser.add_argument("--grow", action="store_true", help="append keys that --vocabulary does not have; its ids stay the same")
    parser.add_argument(
        "--min-count", type=int, default=1, metavar="N", help="keys that occur fewer than N times are OOV (default: 1, keeps all)"
    )
    parser.add_argument(
        "--test-fraction", default="1/7", metavar="F", help="share of the lines, from the end, for test (default: %(default)s)"
    )
    parser.add_argument(
        "--on-bad-line", choices=("skip", "stop"), default="skip", help="count bad lines, or stop at one (default: %(default)s)"
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=MAX_SHARE,
        metavar="F",
        help="stop when more than this share of the lines is bad, with the commonest reason (default: %(default)s)",
    )
    add_text_arguments(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads; default: one for each CPU")
    parser.add_argument(
        "--report", metavar="PAGE", help="also write a page (.html or .png) with figures of the data (needs matplotlib)"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from fractions import Fraction

    from dlrm_tf.data.describe import describe_records
    from dlrm_tf.data.prepare import prepare
    from dlrm_tf.data.upstream import load_counts
    from dlrm_tf.data.vocabulary import Vocabulary
    from dlrm_tf.errors import UsageError, require
    from dlrm_tf.reports.data_page import page_suffix, write_page

    try:
        test_fraction = float(Fraction(args.test_fraction))
        if not 0 <= test_fraction < 1:
            raise ValueError
    except (ValueError, ArithmeticError):
        raise UsageError(f"--test-fraction must be from 0 to below 1, such as 1/7. Received {args.test_fraction!r}") from None
    if args.report:  # checked before the work starts
        page_suffix(args.report)
        require("matplotlib", "report")
    spec = text_spec(args)
    vocabulary = None
    if args.vocabulary:
        upstream = args.vocabulary.endswith(".pkl")
        vocabulary = load_counts(args.vocabulary, spec.categorical_names) if upstream else Vocabulary.load(args.vocabulary)
    prepare(
        args.inputs,
        args.output,
        spec=spec,
        vocabulary=vocabulary,
        grow=args.grow,
        min_count=args.min_count,
        test_fraction=test_fraction,
        on_bad_line=args.on_bad_line,
        threads=args.threads,
        quiet=False,
        max_bad_share=args.max_bad_share,
    )
    print("\n".join(describe_records(args.output, features=False)))
    if args.report:
        write_page(args.output, args.report)
        print(f"page: {args.report}")
