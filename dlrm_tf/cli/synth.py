"""Writes Criteo-format rows with a learnable signal; the best AUC any model can reach is written to TSV.json."""

import argparse

from dlrm_tf.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf synth`."""
    parser.add_argument("-o", "--output", required=True, metavar="TSV", help="file to write")
    parser.add_argument("--rows", type=int, default=300_000, help="number of lines (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same file (default: %(default)s)")
    parser.add_argument(
        "--cardinalities",
        default="small",
        help="number of categories of each feature: small (207 k in all, default), criteo (33.8 M), or 26 numbers with commas",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from dlrm_tf.data.synthetic import synth

    cardinalities = args.cardinalities
    if cardinalities not in ("small", "criteo"):
        try:
            cardinalities = [int(size) for size in cardinalities.split(",")]
        except ValueError:
            raise UsageError(f"--cardinalities must be small, criteo or 26 numbers. Received {cardinalities!r}") from None
    report = synth(args.output, args.rows, seed=args.seed, cardinalities=cardinalities, quiet=False)
    print(f"{report.path}: {report.rows:,} rows, {report.positive_rate:.1%} positive")
    print(f"best AUC any model can reach: {report.best_auc:.4f}, on the last seventh {report.best_auc_test:.4f}")
