"""Export a trained model: `savedmodel` for TensorFlow Serving, `tflite` for a device, `ascend` for an NPU's offline inference."""

import argparse
import sys
from typing import Any

from dlrm_tf.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is common to all kinds, then the options of each."""
    parser.add_argument("kind", choices=["savedmodel", "tflite", "ascend"], help="what to write")
    parser.add_argument("--weights", required=True, metavar="FILE", help="the .weights.h5 file to export")
    output = "savedmodel: folder of models (default: saved_models); tflite: file; ascend: folder"
    parser.add_argument("-o", "--output", metavar="PATH", help=output)
    parser.add_argument("--vocabulary", metavar="FILE", help="vocabulary that the model was trained with; goes into the export")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="prepared data. tflite: its test split is compared with the float model, its train split tells which ids to keep; "
        "ascend: the train split tells which ids to keep where the table is over 2 GB",
    )
    spec = "feature spec of the log (JSON), where features have several keys: with --vocabulary, for their separators"
    parser.add_argument("--spec", metavar="FILE", help=f"{spec} (default: that of --data)")
    parser.add_argument("--name", default="dlrm", help="savedmodel: the model's name (default: dlrm)")
    parser.add_argument("--version", type=int, help="savedmodel: version number (default: the newest there + 1)")
    parser.add_argument(
        "--warmup-batches",
        type=_numbers,
        metavar="N,N",
        help="savedmodel: rows of the warm-up requests; on a server that batches, its allowed_batch_sizes (default: 1,64,1000)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=int,
        metavar="N",
        help="savedmodel: that of the server's batching parameters: no warm-up request is larger (default warm-up: 1,64,N)",
    )
    lite = parser.add_argument_group("tflite")
    lite.add_argument(
        "--mlp",
        default="dynamic",
        choices=["float32", "float16", "dynamic", "mixed"],
        help="precision of the dense layers; dynamic: int8; mixed: int8, but float16 in the layer that reads the interactions "
        "(default: dynamic)",
    )
    dtypes: dict[str, Any] = {"dest": "table_dtype", "choices": ["int8", "int4"]}
    lite.add_argument("--table-dtype", default="int8", help="dtype of the table; int4 needs --data (default: int8)", **dtypes)
    lite.add_argument("--rows", default=argparse.SUPPRESS, help=argparse.SUPPRESS, **dtypes)  # the name until 0.1.0
    lite.add_argument("--max-size", metavar="SIZE", help="such as 20MB: leave out the ids that matter least; needs --data")
    lite.add_argument("--max-auc-loss", type=float, metavar="X", help="write no file whose AUC is lower by more; needs --data")
    lite.add_argument("--curve", metavar="PNG", help="also measure sizes around --max-size: print a table, draw it into PNG")
    npu = parser.add_argument_group("ascend")
    npu.add_argument("--batches", type=_numbers, default=(64,), metavar="N,N", help="rows of a call, one or more (default: 64)")
    npu.add_argument("--soc-version", default="Ascend310P3", metavar="CHIP", help="the chip (default: Ascend310P3)")
    precision = "mixed: atc may compute in float16 (default: float32)"
    npu.add_argument("--precision", default="float32", choices=["float32", "mixed"], help=precision)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted whole numbers with commas. Received {text!r}") from None


def run(args: argparse.Namespace) -> None:
    """Exports; prints what was written."""
    if args.kind == "savedmodel":
        from dlrm_tf.data.records import Records
        from dlrm_tf.export.savedmodel.export import choose_warmup_batches, export_savedmodel

        spec = Records.open(args.data).spec if args.data and args.vocabulary and not args.spec else args.spec
        options = {"name": args.name, "version": args.version, "vocabulary": args.vocabulary, "spec": spec}
        batches = choose_warmup_batches(args.warmup_batches, args.max_batch_size)
        print(export_savedmodel(args.weights, args.output or "saved_models", warmup_batches=batches, **options))
        print(
            f"warm-up requests of {', '.join(map(str, batches))} rows: a server that batches needs max_batch_size of at least "
            f"{max(batches)}",
            file=sys.stderr,
        )
    elif not args.output:
        raise UsageError(f"export {args.kind} needs -o {'FILE.tflite' if args.kind == 'tflite' else 'DIR'}")
    elif args.kind == "ascend":
        from dlrm_tf.export.ascend.export import export_ascend

        settings = {"batches": args.batches, "soc_version": args.soc_version, "precision": args.precision, "data": args.data}
        print(export_ascend(args.weights, args.output, vocabulary=args.vocabulary, **settings))
    elif args.curve and not (args.max_size and args.data):
        raise UsageError("--curve needs --max-size SIZE and --data DIR")
    else:
        from dlrm_tf.export.budget import parse_size
        from dlrm_tf.export.tflite.export import TFLiteExporter

        max_size = parse_size(args.max_size) if args.max_size else None
        exporter = TFLiteExporter(args.weights, data=args.data, vocabulary=args.vocabulary, spec=args.spec)
        numbers = {"mlp": args.mlp, "table_dtype": args.table_dtype}
        print(exporter.export(args.output, max_size=max_size, max_auc_loss=args.max_auc_loss, **numbers))
        if args.curve and max_size is not None:
            from dlrm_tf.reports.size_curve import budgets_around, draw_curve, format_curve, size_curve

            reports = size_curve(exporter, budgets_around(max_size), **numbers)
            print(format_curve(reports))
            draw_curve(reports, args.curve)
