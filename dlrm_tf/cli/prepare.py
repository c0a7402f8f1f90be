"""Converts raw Criteo TSV (or another log, with --spec) to records, manifest and vocabulary. An interrupted run is resumed."""

import argparse
from collections.abc import Callable
from typing import Any, Optional, Union

from dlrm_tf.cli.text_options import add_text_arguments, text_spec
from dlrm_tf.data.bad_lines import MAX_SHARE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `dlrm-tf prepare`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="LOG",
        help="raw files, taken in order as one log: text, plain or packed (gzip, zstd, bz2, xz), Parquet, Arrow (Feather); "
        "folders, patterns ('day_*'), URLs (s3://, gs://, http://, ...; need fsspec), - for standard input",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to make, or an interrupted one to finish")
    parser.add_argument(
        "--spec",
        metavar="SPEC",
        help="columns of the log: criteo_kaggle (the default), criteo_1tb, avazu, or a JSON file, which dlrm-tf spec writes",
    )
    _add_id_arguments(parser)
    parser.add_argument(
        "--test-fraction", default="1/7", metavar="F", help="share of the lines, from the end, for test (default: %(default)s)"
    )
    parser.add_argument(
        "--on-bad-line", choices=("skip", "stop"), default="skip", help="count bad lines, or stop at one (default: %(default)s)"
    )
    parser.add_argument(
        "--engine", choices=("local", "spark"), default="local", help="work here, or on Spark: the same bytes (default: local)"
    )
    parser.add_argument("--master", metavar="URL", help="where Spark is: spark://HOST:PORT, yarn, local[4] …; default: local[*]")
    parser.add_argument(
        "--spark-conf",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of Spark, such as spark.executor.memory=8g; may be given several times",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=MAX_SHARE,
        metavar="F",
        help="stop when more than this share of the lines is bad, with the commonest reason (default: %(default)s)",
    )
    add_text_arguments(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="number of threads, without --engine; default: one for each CPU")
    parser.add_argument(
        "--report", metavar="PAGE", help="also write a page (.html or .png) with figures of the data (needs matplotlib)"
    )


def _add_id_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which keys get which ids."""
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="use these ids: a vocabulary.npz, or upstream's cat_count_dict.pkl; others are OOV",
    )
    parser.add_argument("--grow", action="store_true", help="append keys that --vocabulary does not have; its ids stay the same")
    parser.add_argument(
        "--min-count", type=int, default=1, metavar="N", help="keys that occur fewer than N times are OOV (default: 1, keeps all)"
    )
    parser.add_argument(
        "--max-ids",
        metavar="N",
        help="most keys of a feature, the most frequent ones; others are OOV. A number, or for some features C3=1000000,C4=5000",
    )
    parser.add_argument(
        "--last-seen",
        metavar="DAY",
        help="day of this log, such as 2026-11-25: the vocabulary keeps for each key the last day on which it occurred",
    )
    parser.add_argument(
        "--hash",
        action="append",
        default=[],
        metavar="C3=N",
        help="no vocabulary for this feature: ids are hashes of its keys, modulo N; may be given several times",
    )
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="TABLE=C1,C5",
        help="one vocabulary and one embedding table for these features, whose keys mean the same; may be given several times",
    )
    parser.add_argument(
        "--unify",
        action="append",
        default=[],
        metavar="TABLE=C3,C4",
        help="one embedding table for these hashed features, each with a hash of its own; may be given several times",
    )


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    from fractions import Fraction

    from dlrm_tf.data.describe import describe_records
    from dlrm_tf.data.prepare import prepare
    from dlrm_tf.data.upstream import load_counts
    from dlrm_tf.data.vocabulary import Vocabulary
    from dlrm_tf.errors import UsageError, require
    from dlrm_tf.reports.data_page import page_suffix, write_page

    try:
        test_fraction = float(Fraction(args.test_fraction))
        if not 0 <= test_fraction < 1:
            raise ValueError
    except (ValueError, ArithmeticError):
        raise UsageError(f"--test-fraction must be from 0 to below 1, such as 1/7. Received {args.test_fraction!r}") from None
    if args.report:  # checked before the work starts
        page_suffix(args.report)
        require("matplotlib", "report")
    spec = _with_tables(text_spec(args), args)
    vocabulary = None
    if args.vocabulary:
        upstream = args.vocabulary.endswith(".pkl")
        vocabulary = load_counts(args.vocabulary, spec.categorical_names) if upstream else Vocabulary.load(args.vocabulary)
    prepare(
        args.inputs,
        args.output,
        spec=spec,
        vocabulary=vocabulary,
        grow=args.grow,
        min_count=args.min_count,
        test_fraction=test_fraction,
        on_bad_line=args.on_bad_line,
        threads=args.threads,
        quiet=False,
        max_ids=_max_ids(args.max_ids),
        last_seen=args.last_seen,
        engine=_engine(args),
        max_bad_share=args.max_bad_share,
    )
    print("\n".join(describe_records(args.output, features=False)))
    if args.report:
        write_page(args.output, args.report)
        print(f"page: {args.report}")


def _max_ids(text: Optional[str]) -> Union[None, int, dict[str, int]]:
    """The value of --max-ids: `1000` is a number, `C3=1000,C4=5` are numbers by feature."""
    from dlrm_tf.errors import UsageError

    if text is None:
        return None
    try:
        if "=" not in text:
            return int(text)
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        numbers = {name: int(number) for name, number in pairs}
    except ValueError:
        raise UsageError(f"--max-ids must be a number, or features with theirs as C3=1000,C4=500. Received {text!r}") from None
    if len(numbers) < len(pairs):
        raise UsageError(f"--max-ids must have each feature once. Received {text!r}")
    return numbers


def _engine(args: argparse.Namespace) -> Any:
    """What `prepare` takes for --engine and its options."""
    from dlrm_tf.data.spark.engine import SparkEngine
    from dlrm_tf.errors import UsageError

    if args.engine == "spark":
        conf = _named("--spark-conf", args.spark_conf, str, "spark.executor.memory=8g", first=True)
        return SparkEngine(args.master or "local[*]", conf=conf, debug=args.debug)
    if args.master or args.spark_conf:
        raise UsageError("--master and --spark-conf are options of --engine spark. Received them without it")
    return None


def _with_tables(spec: Any, args: argparse.Namespace) -> Any:
    """The feature spec with what --hash, --share and --unify add to it."""
    import dataclasses

    from dlrm_tf.errors import DataError, UsageError

    hashed = _named("--hash", args.hash, int, "C3=1000000")
    tables = {
        field: _named(option, given, lambda names: names.split(","), "TABLE=C1,C5")
        for field, option, given in (("shared", "--share", args.share), ("unified", "--unify", args.unify))
    }
    try:
        added = {"hashed": hashed, **tables}
        return dataclasses.replace(spec, **{field: {**getattr(spec, field), **values} for field, values in added.items()})
    except DataError as e:
        raise UsageError(str(e)) from None


def _named(option: str, texts: list[str], read: Callable[[str], Any], example: str, *, first: bool = False) -> dict[str, Any]:
    """`NAME=VALUE` texts as a dict; the name ends at the first `=` or, as names of features may have one, at the last."""
    from dlrm_tf.errors import UsageError

    values = {}
    for text in texts:
        name, sign, value = text.partition("=") if first else text.rpartition("=")
        if name in values:
            raise UsageError(f"{option} must be given once for {name!r}. Received it twice")
        try:
            values[name] = read(value)
        except ValueError:
            sign = ""
        if not name or not sign:
            raise UsageError(f"{option} must be as {example}. Received {text!r}")
    return values
