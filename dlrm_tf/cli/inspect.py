"""Shows what is in a checkpoint or weights file (tensors, shapes, dtypes, optimizer state), a vocabulary or a data folder."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf inspect`."""
    parser.add_argument("path", metavar="FILE", help="checkpoint, weights file, vocabulary or data folder")
    parser.add_argument(
        "--check", action="store_true", help="read the whole file: show its sha256, name it if known, verify its checksum"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    import json
    import os

    if os.path.isdir(args.path):
        from dlrm_tf.data.describe import describe_records
        from dlrm_tf.data.records import Records

        print(json.dumps(Records.open(args.path).manifest) if args.json else "\n".join(describe_records(args.path)))
        return
    from dlrm_tf.checkpoints.describe import as_text, describe_checkpoint

    report = describe_checkpoint(args.path, check=args.check)
    print(json.dumps(report) if args.json else as_text(report))
