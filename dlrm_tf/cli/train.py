"""Train a DLRM on prepared data; the run folder gets checkpoints, TensorBoard events, history.json and the weights."""

import argparse
import contextlib
import os

from dlrm_tf.errors import UsageError, require


def add_arguments(parser) -> None:
    parser.add_argument("--data", required=True, help="folder made by dlrm-tf prepare")
    parser.add_argument("-o", "--output", required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--weights", help="a .weights.h5 to start from (fine-tuning)")
    parser.add_argument(
        "--optimizer-state",
        action=argparse.BooleanOptionalAction,
        help="go on with the optimizer state in --weights, or never; default: when there is one that fits",
    )
    parser.add_argument(
        "--save-optimizer-state", action="store_true", help="write the optimizer's state into model.weights.h5 too"
    )
    parser.add_argument("--config", help="architecture of a new model: JSON file; default: Criteo Kaggle's MLPs")
    parser.add_argument(
        "--optimizer", choices=("sgd", "adagrad", "rowwise_adagrad", "lazy_adam"), default="adagrad", help="default: adagrad"
    )
    parser.add_argument("--learning-rate", type=float, help="default: the optimizer's own")
    parser.add_argument("--momentum", type=float, default=0.0, help="of the MLPs, with --optimizer sgd")
    parser.add_argument("--dense-optimizer", choices=("sgd", "adagrad", "adam"), help="another optimizer for the MLPs")
    parser.add_argument("--dense-learning-rate", type=float, help="with --dense-optimizer; default: --learning-rate")
    parser.add_argument("--warmup-steps", type=int, default=0, help="steps over which the learning rate rises")
    parser.add_argument(
        "--decay", type=float, default=0.0, metavar="PART", help="last part of all steps (0 to 1) in which it falls to 0"
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the rows")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in RUN")
    parser.add_argument("--checkpoint-steps", type=int, metavar="N", help="checkpoint every N steps, not only every epoch")
    parser.add_argument("--steps-per-execution", type=int, default=1, metavar="N", help="steps run without returning to Python")
    parser.add_argument(
        "--strategy",
        choices=("one", "mirrored", "multi_worker", "parameter_server", "tpu", "ascend"),
        default="one",
        help="which devices and processes train together, see README (default: one); ascend: one process a Huawei NPU",
    )
    parser.add_argument("--local-workers", type=int, default=0, metavar="N", help="try a cluster on this machine: N workers")
    parser.add_argument(
        "--local-ps", type=int, default=0, metavar="N", help="with --strategy parameter_server: N parameter servers"
    )
    parser.add_argument(
        "--precision", choices=("float32", "mixed"), default="float32", help="with --strategy ascend (default: float32)"
    )
    parser.add_argument("--loss-scale", metavar="X", help="with --precision mixed: a number, or dynamic (default)")
    parser.add_argument("--profile", metavar="FIRST:LAST", help="record TensorFlow's profile of these steps, for TensorBoard")
    parser.add_argument("--plot", action="store_true", help="draw RUN/training.png and RUN/quality.png (needs matplotlib)")
    parser.add_argument("--no-validation", action="store_true", help="do not measure the test split after every epoch")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args) -> None:
    from dlrm_tf.config import DLRMConfig

    if args.plot:
        require("matplotlib", "report")  # missed now, not after the training
    for option in ("epochs", "batch_size", "steps_per_execution", "checkpoint_steps"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')}: wanted a positive number. Received {value}")
    if args.dense_learning_rate is not None and not args.dense_optimizer:
        raise UsageError("--dense-learning-rate: wanted --dense-optimizer with it (without, there is one rate)")
    config = DLRMConfig.read(args.config) if args.config else None
    options = {
        "data": args.data,
        "run_dir": args.output,
        "weights": args.weights,
        "config": config and config.to_json(),
        "optimizer": args.optimizer,
        "learning_rate": args.learning_rate,
        "momentum": args.momentum,
        "dense_optimizer": args.dense_optimizer,
        "dense_learning_rate": args.dense_learning_rate,
        "warmup_steps": args.warmup_steps,
        "decay": args.decay,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "seed": args.seed,
        "resume": args.resume,
        "checkpoint_steps": args.checkpoint_steps,
        "steps_per_execution": args.steps_per_execution,
        "validate": not args.no_validation,
        "profile": _profile(args.profile),
        "precision": args.precision,
        "loss_scale": _loss_scale(args.loss_scale),
        "optimizer_state": args.optimizer_state,
        "save_optimizer_state": args.save_optimizer_state,
    }
    with contextlib.ExitStack() as stack:
        if args.local_workers or args.local_ps:
            from dlrm_tf.train.local_cluster import local_cluster

            logs = os.path.join(args.output, "logs")
            stack.enter_context(local_cluster(args.strategy, args.local_workers, args.local_ps, options, logs))
        from dlrm_tf.train.fit import fit

        trained = fit(**{**options, "config": config}, strategy=args.strategy, quiet=args.quiet)
    if args.plot:
        from dlrm_tf.reports.training_plots import plot_history, plot_quality
        from dlrm_tf.train.evaluate import measure

        plot_history(trained.history, os.path.join(args.output, "training.png"))
        plot_quality(measure(args.data, trained.best_weights, quiet=args.quiet), os.path.join(args.output, "quality.png"))
    print("epoch      loss    rows/s       AUC   logloss        NE  calibration")
    for entry in trained.history:
        v = entry["validation"]
        names = ("auc", "logloss", "normalized_entropy", "calibration")
        figures = "".join(f"{v[name]:>10.5f}" if v and v[name] is not None else f"{'-':>10}" for name in names)
        print(f"{entry['epoch']:>5}{entry['loss']:>10.5f}{entry['rows_per_second']:>10,.0f}{figures}")
    print(f"last weights: {trained.weights}\nbest weights: {trained.best_weights}")


def _profile(text):
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise UsageError(f"--profile: wanted FIRST:LAST, such as 100:110. Received {text!r}")
    return int(first), int(last)


def _loss_scale(text):
    if text in (None, "dynamic"):
        return text
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--loss-scale: wanted a number or dynamic. Received {text!r}") from None
