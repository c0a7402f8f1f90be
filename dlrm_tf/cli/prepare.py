"""Raw Criteo TSV (or another log with a feature spec) to records, manifest and vocabulary."""


def add_arguments(parser) -> None:
    """The verb's options."""
    parser.add_argument("inputs", nargs="+", metavar="TSV", help="raw files, in order")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="folder to make")


def run(args) -> None:
    """Prepares the folder."""
    from dlrm_tf.data.criteo import prepare

    records = prepare(args.inputs, args.output, quiet=False)
    counts = records.manifest["counts"]
    print(
        f"{args.output}: {records.rows('train'):,} train rows, {records.rows('test'):,} test rows, {sum(records.sizes):,} categories"
    )
    print(f"lines {counts['lines']:,}, skipped as bad {counts['bad_lines']:,}")
