"""Scores rows with a server (gRPC or REST), a SavedModel, a .tflite file or a .weights.h5 file; one probability a line."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from dlrm_tf.cli.text_options import add_text_arguments, text_spec
from dlrm_tf.errors import UsageError
from dlrm_tf.files import atomic_file
from dlrm_tf.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf score`."""
    parser.add_argument(
        "rows",
        metavar="ROWS",
        help=".npz with dense (already log(max(x,0)+1)) and categorical (ids), and weights where the model has any, .npy of "
        "dense with --categorical, a folder of records as prepare writes it, or a raw log in any form that prepare takes "
        "(Criteo's columns, or --spec), with --vocabulary; - is standard input",
    )
    parser.add_argument(
        "--target",
        required=True,
        help="host:port or unix://PATH (gRPC), http(s)://HOST:PORT (REST), a SavedModel folder or a folder of versions, "
        "FILE.tflite, FILE.weights.h5",
    )
    parser.add_argument("--categorical", metavar="FILE", help=".npy of ids, when ROWS is an .npy of dense")
    parser.add_argument("--vocabulary", metavar="FILE", help="vocabulary.npz of the model, for a raw log")
    parser.add_argument("--spec", metavar="SPEC", help="columns of a raw log, as for prepare (default: criteo_kaggle)")
    add_text_arguments(parser, labels=False)
    parser.add_argument("--split", default="test", choices=("train", "test"), help="of a records folder (default: test)")
    parser.add_argument("--model_name", default="dlrm", metavar="NAME", help="model on a server (default: dlrm)")
    parser.add_argument("--model_version", type=int, metavar="N", help="its version (default: the latest)")
    parser.add_argument("--model_label", metavar="LABEL", help="version label on a server, instead of a version")
    parser.add_argument("--timeout", type=float, metavar="S", help="deadline of one request in seconds (default: 10)")
    parser.add_argument("--retries", type=int, metavar="N", help="further attempts while a server is unavailable (default: 3)")
    parser.add_argument(
        "--tls", action="store_true", help="encrypt gRPC, trust the system's authorities (implied by the next four)"
    )
    parser.add_argument("--ca_file", metavar="PEM", help="authority that signs the server's certificate")
    parser.add_argument("--cert_file", metavar="PEM", help="this client's certificate, where the server wants one")
    parser.add_argument("--key_file", metavar="PEM", help="its key")
    parser.add_argument("--server_name", metavar="NAME", help="name in the server's certificate, when not the host's")
    parser.add_argument("--batch_size", type=int, default=1024, metavar="N", help="rows a request (default: 1024)")
    parser.add_argument("--output", "-o", metavar="FILE", help=".csv or .npy instead of standard output")


def run(args: argparse.Namespace) -> None:
    """Runs the verb: writes one probability a row, in the rows' order."""
    if args.batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1. Received {args.batch_size}")
    if args.model_version is not None and args.model_label is not None:
        raise UsageError("--model_version and --model_label exclude each other")
    if args.output and not args.output.endswith((".csv", ".npy")):
        raise UsageError(f"--output must be a .csv or .npy file. Received {args.output!r}")
    import numpy as np

    from dlrm_tf.score.client import Tls
    from dlrm_tf.score.rows import read_rows
    from dlrm_tf.score.targets import open_target

    rows = {name: getattr(args, name) for name in ("batch_size", "categorical", "vocabulary", "split")}
    batches = read_rows(args.rows, spec=text_spec(args), **rows)
    options = {name: getattr(args, name) for name in ("timeout", "retries") if getattr(args, name) is not None}
    files = {name: getattr(args, name) for name in ("ca_file", "cert_file", "key_file", "server_name")}
    if args.tls or any(files.values()):
        options["tls"] = Tls(**files)
    options.update(batch_size=args.batch_size, model_name=args.model_name, version=args.model_version, label=args.model_label)
    with open_target(args.target, **options) as target:
        if args.output is None:
            for probability in _score(target, batches):
                sys.stdout.write(_lines(probability))
        elif args.output.endswith(".csv"):
            with atomic_file(args.output) as path, open(path, "w", encoding="ascii") as out:
                out.write("probability\n")
                for probability in _score(target, batches):
                    out.write(_lines(probability))
        else:
            probabilities = np.concatenate([np.zeros(0, np.float32), *_score(target, batches)])
            with atomic_file(args.output) as path, open(path, "wb") as out:
                np.save(out, probabilities.astype(np.float32))


def _score(target: Any, batches: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    with Progress("score", unit="rows") as progress:
        for batch in batches:
            yield target.score(*batch)
            progress.update(len(batch[0]))


def _lines(probability: Any) -> str:
    # Nine significant digits bring a float32 back exactly.
    return "".join(f"{value:.9g}\n" for value in probability.tolist())
