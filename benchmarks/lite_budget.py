"""What a size budget costs, by which ids it keeps: ranked by measured loss (ours) against by frequency (the usual way).

    python benchmarks/lite_budget.py [--rows 1000000] [--epochs 6] [--picture curve.png]

Rows are those of `synth --world 2`, in which every id has an effect, so that each id given up costs something. Quality is
measured on the test split; `divergence` is the mean Kullback-Leibler divergence of the pruned file's probabilities from the float
model's of all ids.
"""

import argparse
import os
import tempfile

import numpy as np

from dlrm_tf.export.tflite.export import TFLiteExporter

BUDGETS_MB = (0.55, 0.6, 0.7, 0.85, 1, 1.5, 2.5, 4, 8)


def by_frequency(exporter: TFLiteExporter) -> TFLiteExporter:
    """Makes an exporter keep the ids that occur most often."""
    from dlrm_tf.export.budget import IdRanking

    exporter.source.ranking = IdRanking([count[:-1] for count in exporter.source.counts])
    return exporter


def divergence(path: str, exporter: TFLiteExporter) -> float:
    """Mean Kullback-Leibler divergence in nats of the file's probabilities from the float model's."""
    from dlrm_tf.lite import Scorer

    p, q = (
        np.clip(x.astype(np.float64), 1e-7, 1 - 1e-7)
        for x in (exporter.source.float_probabilities, Scorer(path).score(*exporter.source.evaluation))
    )
    return float(np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))))


def main(argv=None) -> None:
    """Trains, exports at every budget both ways, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--picture", help="also draw the curve of ours here")
    args = parser.parse_args(argv)
    from dlrm_tf.data.prepare import prepare
    from dlrm_tf.data.synthetic import synth
    from dlrm_tf.reports.size_curve import draw_curve
    from dlrm_tf.train.fit import fit

    with tempfile.TemporaryDirectory(prefix="dlrm_tf_bench_") as folder:
        log, data = os.path.join(folder, "log.tsv"), os.path.join(folder, "data")
        synth(log, args.rows, seed=3, world=2, cardinalities="criteo")
        prepare(log, data, quiet=True)
        weights = fit(data, os.path.join(folder, "run"), epochs=args.epochs, quiet=True).best_weights
        ours, usual = (TFLiteExporter(weights, data=data, quiet=True) for _ in range(2))
        by_frequency(usual)
        print(f"{'MB':>6}{'ids':>11}   {'AUC':<20}{'logloss':<20}{'divergence':<22}")
        print(f"{'':>20}" + "   ".join(f"{'by loss':>9}{'frequency':>10}" for _ in range(3)))
        reports, path = [], os.path.join(folder, "m.tflite")
        for megabytes in (*BUDGETS_MB, 1000):
            measured = []
            for exporter in (ours, usual):
                report = exporter.export(path, mlp="dynamic", max_size=int(megabytes * 1e6))
                measured.append((report, divergence(path, exporter)))
            reports.append(measured[0][0])
            cells = [
                [r.quality["auc"] for r, _ in measured],
                [r.quality["logloss"] for r, _ in measured],
                [d for _, d in measured],
            ]
            figures = "   ".join(f"{a:>9.5f}{b:>10.5f}" for a, b in cells)
            print(f"{reports[-1].bytes / 1e6:>6.2f}{reports[-1].ids:>11,}   {figures}", flush=True)
        last, quality = reports[-1], reports[-1].float_quality
        print(f"float32, all ids: {last.float_bytes / 1e6:.0f} MB, AUC {quality['auc']:.5f}, logloss {quality['logloss']:.5f}")
        if args.picture:
            draw_curve(reports, args.picture)


if __name__ == "__main__":
    main()
