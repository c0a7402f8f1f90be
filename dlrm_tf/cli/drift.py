"""Compares the rows of B with those of A, feature by feature: two data folders, or a data folder and a server's request log."""

import argparse

# Options that have the names of `drift`'s arguments.
_OPTIONS = ("a_split", "b_split", "weights", "bins", "top_keys", "sample_rows", "quiet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf drift`."""
    parser.add_argument("a", metavar="A", help="the reference, such as the data a model was trained on: a data folder")
    parser.add_argument(
        "b",
        metavar="B",
        help="a data folder, or a request log: TFRecord files of PredictionLog, one or a folder, plain or gzip, with A's ids",
    )
    for side in ("a", "b"):
        parser.add_argument(
            f"--{side}-split",
            choices=("all", "train", "test"),
            default="all",
            help=f"rows of {side.upper()} (default: %(default)s)",
        )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="also compare the scores of this model, which was trained with A's vocabulary: .weights.h5, SavedModel or .tflite",
    )
    parser.add_argument("--max-psi", type=float, metavar="X", help="exit with 3 if the PSI of a feature or the score is above X")
    parser.add_argument(
        "--max-new-share", type=float, metavar="X", help="exit with 3 if more than this share of a feature's keys is new"
    )
    parser.add_argument(
        "--top",
        type=int,
        default=100,
        dest="top_keys",
        metavar="N",
        help="so many of A's most frequent keys have bins of their own (default: %(default)s)",
    )
    parser.add_argument("--bins", type=int, default=10, metavar="N", help="bins of numbers above 0 (default: %(default)s)")
    parser.add_argument(
        "--sample-rows",
        type=int,
        default=200_000,
        metavar="N",
        help="size of the sample for quantiles and scores: N to 2 N rows of each side (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write every figure as JSON")
    parser.add_argument("--page", metavar="PAGE", help="also write a page, .html or .png (needs matplotlib)")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    import json
    import math

    from dlrm_tf.cli.main import EXIT_DONE, EXIT_GATE
    from dlrm_tf.errors import UsageError, require
    from dlrm_tf.files import write_file
    from dlrm_tf.fresh.drift import drift
    from dlrm_tf.reports.data_page import page_suffix
    from dlrm_tf.reports.drift_page import drift_lines, write_drift_page

    for flag, bound in (("--max-psi", args.max_psi), ("--max-new-share", args.max_new_share)):
        if bound is not None and not 0 <= bound < math.inf:
            raise UsageError(f"{flag} must be a number from 0 on. Received {bound}")
    if args.page:  # checked before the work starts
        page_suffix(args.page)
        require("matplotlib", "report")
    found = drift(args.a, args.b, **{name: getattr(args, name) for name in _OPTIONS})
    print("\n".join(drift_lines(found)))
    if args.json:
        write_file(args.json, json.dumps(found.to_dict(), indent=1))
    if args.page:
        write_drift_page(found, args.page)
        print(f"page: {args.page}")
    over = found.over(max_psi=args.max_psi, max_new=args.max_new_share)
    if over:
        print(f"too much drift: {', '.join(over)}")
    return EXIT_GATE if over else EXIT_DONE
