"""Give a trained model room for new ids: old ids keep their rows (and optimizer state), new ones get initial rows."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files, and the seed."""
    parser.add_argument("weights", help=".weights.h5 to grow")
    parser.add_argument(
        "--vocabulary", required=True, metavar="FILE", help="the larger vocabulary (prepare --vocabulary OLD --grow)"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help=".weights.h5 to write")
    parser.add_argument("--seed", type=int, help="seed of the new ids' initial rows (default: another one in every run)")


def run(args: argparse.Namespace) -> None:
    """Grows; prints how many ids were added."""
    from dlrm_tf.data.vocabulary import Vocabulary
    from dlrm_tf.weights.grow import grow_weights
    from dlrm_tf.weights.reader import WeightsReader

    with WeightsReader(args.weights) as reader:
        before = reader.config.num_ids
        if not reader.attributes["vocabulary_fingerprint"]:
            print(f"note: {args.weights} names no vocabulary; its ids are taken to be the first ones of {args.vocabulary}")
    config = grow_weights(args.weights, args.output, Vocabulary.load(args.vocabulary), seed=args.seed)
    after = config.num_ids
    print(f"{args.output}: {after:,} ids, {after - before:,} of them new")
