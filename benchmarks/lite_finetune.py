"""Does fine-tuning with simulated row quantization help the TFLite file? Against the same fine-tuning in plain float.

    dlrm-tf synth -o log.tsv --rows 1000000 --cardinalities criteo && dlrm-tf prepare log.tsv -o data
    dlrm-tf train --data data -o run --epochs 2
    python benchmarks/lite_finetune.py --data data --weights run/best.weights.h5

Each arm goes on from the same weights for one epoch; the simulated arms read every row rounded to 8 or 4 bits, with the gradient
passed straight through (Bengio et al. 2013; Jacob et al. 2018). Then each is exported with int8 and int4 rows and measured on the
test split. Measured so far: no gain at 8 bits, none at 4 (BUILD_NOTES.md), so `train` has no such option.
"""

import argparse
import os
import tempfile

from dlrm_tf.export.tflite.export import TABLE_BITS, TFLiteExporter
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.embedding import FusedEmbedding
from dlrm_tf.train.fit import fit

tf = tensorflow()
_lookup = FusedEmbedding.call


def simulated(bits: int):
    """`FusedEmbedding.call` with rows rounded to `bits`, identity in the gradient."""
    limit = 2 ** (bits - 1) - 1

    def call(self, categorical):
        rows = _lookup(self, categorical)
        # Four bits: the exporter lets the largest value of most rows saturate.
        share = 0.9 if bits == 4 else 1.0
        scale = share * tf.reduce_max(tf.abs(rows), axis=-1, keepdims=True) / limit
        scale = tf.where(scale > 0, scale, tf.ones_like(scale))
        rounded = tf.clip_by_value(tf.round(rows / scale), -limit, limit) * scale
        return rows + tf.stop_gradient(rounded - rows)

    return call


def main(argv=None) -> None:
    """Trains the three arms, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    args = parser.parse_args(argv)
    print(f"{'trained with':<16}{'rows':>6}{'AUC float':>11}{'file':>9}{'logloss float':>15}{'file':>9}{'mean error':>12}")
    with tempfile.TemporaryDirectory(prefix="dlrm_tf_bench_") as folder:
        for name, call in (("float rows", _lookup), ("8-bit rows", simulated(8)), ("4-bit rows", simulated(4))):
            FusedEmbedding.call = call
            settings = {
                "optimizer": "adagrad",
                "epochs": 1,
                "learning_rate": args.learning_rate,
                "validate": False,
                "quiet": True,
            }
            trained = fit(args.data, os.path.join(folder, name), weights=args.weights, **settings)
            FusedEmbedding.call = _lookup
            exporter = TFLiteExporter(trained.weights, data=args.data, quiet=True)
            for table_dtype in TABLE_BITS:
                report = exporter.export(os.path.join(folder, "m.tflite"), table_dtype=table_dtype, max_auc_loss=1.0)
                before, after = report.float_quality, report.quality
                print(
                    f"{name:<16}{table_dtype:>6}{before['auc']:>11.5f}{after['auc']:>9.5f}{before['logloss']:>15.5f}"
                    f"{after['logloss']:>9.5f}{report.mean_error:>12.5f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
