"""Converts a DLRM checkpoint (MindSpore .ckpt or .safetensors, PyTorch) to a Keras .weights.h5, or back to MindSpore."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf convert`."""
    parser.add_argument("source", metavar="SOURCE", help="checkpoint to read; a .weights.h5 when converting back")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="file to write: .weights.h5, .ckpt or .safetensors")
    parser.add_argument("--to", choices=("keras", "mindspore"), help="what to write; default: by FILE's suffix")
    parser.add_argument(
        "--config", metavar="CONFIG", help="JSON file or preset (criteo_kaggle, tiny); default: from the tensors' shapes"
    )
    parser.add_argument("--prefix", help="prefix of the weights' names, when the source holds more than one network")
    parser.add_argument("--allow-extra", action="store_true", help="leave out tensors that are not part of a DLRM")
    parser.add_argument(
        "--verify",
        metavar="SAMPLE",
        help="compare every tensor, and the logits of SAMPLE (a number of rows, an .npz, or a data folder) with an independent "
        "NumPy forward pass of the checkpoint; writes FILE.parity.json",
    )
    parser.add_argument(
        "--optimizer-state", action="store_true", help="also carry the optimizer's state (SGD, Momentum, Adagrad)"
    )
    parser.add_argument("--check", action="store_true", help="hash the whole source: its sha256 is stored, a known file is named")
    parser.add_argument("--crc", action="store_true", help="append MindSpore's checksum (only --to mindspore)")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from dlrm_tf.checkpoints.convert import convert
    from dlrm_tf.checkpoints.sample import read_sample

    done = convert(
        args.source,
        args.output,
        config=args.config,
        to=args.to,
        prefix=args.prefix,
        allow_extra=args.allow_extra,
        optimizer_state=args.optimizer_state,
        crc=args.crc,
        check=args.check,
        before_writing=None if args.verify is None else lambda config: read_sample(args.verify, config),
    )
    tables = f"{done.config.num_categorical} tables of width {done.config.embedding_dim}"
    print(f"{done.target}: {done.tensors} weights, {done.nbytes / 1e6:,.1f} MB, {tables}")
    for note in done.notes:
        print(f"note: {note}")
    if args.verify is not None:
        from dlrm_tf.checkpoints.verify import verify  # loads TensorFlow

        checkpoint, weights = (done.source, done.target) if args.output.endswith(".weights.h5") else (done.target, done.source)
        parity = verify(checkpoint, weights, sample=args.verify, prefix=args.prefix, allow_extra=args.allow_extra)
        parity.write(f"{done.target}.parity.json")
        parity.check()
        print(f"{parity}\nreport: {done.target}.parity.json")
