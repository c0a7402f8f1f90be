"""Measure a model on prepared data: accuracy, AUC, logloss, normalized entropy, calibration."""

import argparse
import json
from typing import Any

from dlrm_tf.errors import UsageError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The data, the weights, and how to measure."""
    parser.add_argument("--data", required=True, help="folder made by dlrm-tf prepare")
    parser.add_argument("--weights", required=True, help="a .weights.h5 file")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="rows to measure (default: test)")
    parser.add_argument("--batch-size", type=int, default=8192, help="rows per step; does not change the result (default: 8192)")
    parser.add_argument(
        "--streaming", action="store_true", help="AUC from 8000 thresholds in constant memory (for more rows than memory holds)"
    )
    parser.add_argument("--plot", metavar="PNG", help="also draw the ROC curve and the calibration (needs matplotlib)")
    parser.add_argument(
        "--baselines",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also measure the training rows' click rate and a logistic regression of them, seconds for the first time "
        "(default: yes)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> None:
    """Prints the metrics, draws them if asked to."""
    if args.batch_size < 1:
        raise UsageError(f"--batch-size: wanted a positive number. Received {args.batch_size}")
    if args.plot:
        if args.streaming:
            raise UsageError("--plot needs every score: leave --streaming out")
        require("matplotlib", "report")
    from dlrm_tf.train.baselines import baselines
    from dlrm_tf.train.evaluate import measure

    options = {"split": args.split, "batch_size": args.batch_size, "exact": not args.streaming, "quiet": args.quiet}
    metrics = measure(args.data, args.weights, **options)
    result, bins = metrics.result(), [] if args.streaming else metrics.calibration_bins()
    if args.plot:
        from dlrm_tf.reports.training_plots import plot_quality

        plot_quality(metrics, args.plot)
    others = baselines(args.data, split=args.split, exact=not args.streaming) if args.baselines else {}
    if args.json:
        extra = {"calibration_bins": bins, "baselines": others}
        print(json.dumps({**result, **{name: value for name, value in extra.items() if value}}))
        return
    if others:
        print(f"{'':<20}{'model':>12}{'constant':>12}{'logistic regression':>22}")
    for name, value in result.items():
        beside = "".join(f"{_text(name, figures[name]):>{width}}" for figures, width in zip(others.values(), (12, 22)))
        print(f"{name:<20}{_text(name, value):>12}{beside}")
    if bins:
        print("calibration by prediction (bins of equal counts)\n      rows  mean prediction  mean label")
    for part in bins:
        print(f"{part['rows']:>10,}  {part['mean_prediction']:>15.6f}  {part['mean_label']:>10.6f}")


def _text(name: str, value: Any) -> str:
    return "undefined" if value is None else f"{value:,}" if name == "rows" else f"{value:.6f}"
