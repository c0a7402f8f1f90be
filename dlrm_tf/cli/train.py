"""Train a DLRM on prepared data; the run folder gets checkpoints, TensorBoard events, history.json and the weights."""

import argparse
import contextlib
import dataclasses
import os
from typing import Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import require
from dlrm_tf.train.options import FitOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folders, every field of `FitOptions`, and what only the command line has."""
    parser.add_argument("--data", required=True, help="folder made by dlrm-tf prepare")
    parser.add_argument("-o", "--output", required=True, metavar="RUN", help="folder of the run")
    for field in dataclasses.fields(FitOptions):
        flag = field.metadata["flag"] or f"--{field.name.replace('_', '-')}"
        if field.metadata["kind"] is bool:
            action = parser.add_argument(flag, dest=field.name, action=argparse.BooleanOptionalAction, default=field.default)
            action.help = field.metadata["help"]  # given above, some versions of Python would add the default once more
        else:
            names = {"type": "kind", "choices": "choices", "metavar": "metavar", "help": "help"}
            details = {name: field.metadata[key] for name, key in names.items()}
            parser.add_argument(flag, default=field.default, **details)
    workers = "start N workers on this machine, to try a strategy that needs a cluster"
    parser.add_argument("--local-workers", type=int, default=0, metavar="N", help=workers)
    parser.add_argument("--local-ps", type=int, default=0, metavar="N", help="and N parameter servers, for parameter_server")
    parser.add_argument("--plot", action="store_true", help="draw RUN/training.png and RUN/quality.png (needs matplotlib)")


def run(args: argparse.Namespace) -> None:
    """Trains, draws what was asked for, prints one line per epoch."""
    if args.plot:
        require("matplotlib", "report")  # missed now, not after the training
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(FitOptions)}
    options = FitOptions(**{**values, "config": DLRMConfig.read(args.config) if args.config else None})
    from dlrm_tf.train.evaluate import measure
    from dlrm_tf.train.fit import fit
    from dlrm_tf.train.local_cluster import local_cluster

    with contextlib.ExitStack() as stack:
        if args.local_workers or args.local_ps:
            cluster = local_cluster(args.data, args.output, options=options, workers=args.local_workers, ps=args.local_ps)
            stack.enter_context(cluster)
        trained = fit(args.data, args.output, options=options)
    if args.plot:
        from dlrm_tf.reports.training_plots import plot_history, plot_quality

        plot_history(trained.history, os.path.join(args.output, "training.png"))
        plot_quality(measure(args.data, trained.best_weights, quiet=args.quiet), os.path.join(args.output, "quality.png"))
    print("epoch    step      loss    rows/s       AUC   logloss        NE  calibration (validation rows)")
    for entry in trained.history:
        figures = _figures(entry["validation"])
        print(f"{entry['epoch']:>5}{entry['step']:>8}{entry['loss']:>10.5f}{entry['rows_per_second']:>10,.0f}{figures}")
    if trained.test:
        print(f"{'test rows, best weights':<33}{_figures(trained.test)}")
    print(f"last weights: {trained.weights}\nbest weights: {trained.best_weights}")


def _figures(measured: Optional[dict]) -> str:
    names = ("auc", "logloss", "normalized_entropy", "calibration")
    return "".join(f"{measured[name]:>10.5f}" if measured and measured[name] is not None else f"{'-':>10}" for name in names)
