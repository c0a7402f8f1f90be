"""Export a trained model: `savedmodel` for TensorFlow Serving, `tflite` for a device."""

from dlrm_tf.errors import UsageError


def add_arguments(parser):
    """Adds the verb's options."""
    parser.add_argument("kind", choices=["savedmodel", "tflite"])
    parser.add_argument("--weights", required=True, metavar="FILE", help=".weights.h5 to export")
    parser.add_argument("-o", "--output", metavar="PATH", help="savedmodel: folder of models (saved_models); tflite: file")
    parser.add_argument("--vocabulary", metavar="FILE", help="vocabulary the ids come from; carried along")
    parser.add_argument("--name", default="dlrm", help="savedmodel: the model's name (dlrm)")
    parser.add_argument("--version", type=int, help="savedmodel: version number (newest + 1)")
    parser.add_argument(
        "--mlp",
        default="mixed",
        choices=["float32", "float16", "dynamic", "mixed"],
        help="tflite: precision of the dense layers; dynamic is int8, mixed is int8 but for top layer 0 (mixed)",
    )


def run(args):
    """Exports; prints what was written."""
    if args.kind == "savedmodel":
        from dlrm_tf.export.saved_model import export_savedmodel

        print(export_savedmodel(args.weights, args.output or "saved_models", args.name, args.version, args.vocabulary))
    elif not args.output:
        raise UsageError("export tflite needs -o FILE.tflite")
    else:
        from dlrm_tf.export.tflite import export_tflite

        print(export_tflite(args.weights, args.output, args.mlp))
