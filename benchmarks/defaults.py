"""What `dlrm-tf train` reaches without options, beside the best possible, a logistic regression, a constant and the old defaults.

    python benchmarks/defaults.py                                          some 20 trainings
    python benchmarks/defaults.py --rows 2333334 --batches 128,2048,8192   the same rows in smaller and larger batches
    python benchmarks/defaults.py --rows 233334 --worlds 2 --recipes default,bars
    python benchmarks/defaults.py --rows 583334 --worlds 1 --cardinalities criteo --recipes default

For every number of rows, world and seed: `synth`, `prepare`, and for every recipe and batch size `train` and `evaluate`, all as
the verbs do without further options. Figures are those of the test split, the last seventh.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from typing import Any

from dlrm_tf.errors import UsageError

# The defaults of version 0.1, as a recipe file.
BEFORE: dict[str, Any] = {
    "title": "Defaults of version 0.1",
    "source": "version 0.1",
    "expected": [],
    "options": {"optimizer": "adagrad", "learning_rate": 0.02, "batch_size": 2048, "validation_share": 0.0},
}
COLUMNS = ("auc", "logloss", "calibration")


def measure(
    folder: str, world: int, rows: int, cardinalities: str, seed: int, recipes: list[str], batches: list[int]
) -> list[dict[str, Any]]:
    """All trainings on the rows of one seed.

    Args:
      folder: for data and runs.
      world: of `synth`.
      rows: of the log.
      cardinalities: of `synth`.
      seed: of the log and of the initial weights.
      recipes: names of recipes, `"before"` among them.
      batches: batch sizes to set; none: the recipe's.

    Returns:
      One dict per training: `model`, the figures, `steps` and `rows_per_second`, and those of the data (`best_auc`, ...).
    """
    import dlrm_tf
    from dlrm_tf.train.baselines import baselines

    log, data = os.path.join(folder, "log.tsv"), os.path.join(folder, "data")
    made = dlrm_tf.synth(log, rows, seed=seed, world=world, cardinalities=cardinalities)
    records = dlrm_tf.prepare(log, data)
    results = [{"model": name, **{column: figures[column] for column in COLUMNS}} for name, figures in baselines(records).items()]
    for recipe in recipes:
        for batch in batches or [None]:
            path = recipe
            if recipe == "before":
                path = os.path.join(folder, "before.json")
                with open(path, "w", encoding="utf-8") as file:
                    json.dump(BEFORE, file)
            run = os.path.join(folder, f"{recipe}-{batch}")
            trained = dlrm_tf.fit(records, run, recipe=path, batch_size=batch, seed=seed, quiet=True)
            seconds = sum(entry["seconds"] for entry in trained.history)
            speed = trained.options.epochs * records.rows("train") / seconds
            name = recipe if batch is None else f"{recipe}, batch {batch:,}"
            results.append({"model": name, **{column: trained.test[column] for column in COLUMNS}, "rows_per_second": speed})
            print(f"world {world}, {rows:,} rows, seed {seed}: {name}: AUC {trained.test['auc']:.4f}", file=sys.stderr)
    return [{"world": world, "rows": rows, "best_auc": made.best_auc_test, **result} for result in results]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown; figures are means over the seeds, and the spread of the AUC's distance from the best is its range."""
    lines = [
        "| world | rows | model | best possible AUC | AUC | below the best (of the seeds) | logloss | calibration | rows/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for world, rows, model in dict.fromkeys((r["world"], r["rows"], r["model"]) for r in results):
        cells = [r for r in results if (r["world"], r["rows"], r["model"]) == (world, rows, model)]
        below = sorted(cell["best_auc"] - cell["auc"] for cell in cells)
        means = {name: statistics.mean(cell[name] for cell in cells) for name in ("best_auc", *COLUMNS)}
        speed = f"{statistics.mean(cell['rows_per_second'] for cell in cells):,.0f}" if "rows_per_second" in cells[0] else ""
        lines.append(
            f"| {world} | {rows:,} | {model} | {means['best_auc']:.4f} | {means['auc']:.4f} | {statistics.mean(below):.4f} "
            f"({below[0]:.4f} to {below[-1]:.4f}) | {means['logloss']:.4f} | {means['calibration']:.3f} | {speed} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--rows", type=numbers, default=[9_800, 58_333, 233_334], help="of the logs (default: 9800,58333,233334)")
    parser.add_argument("--worlds", type=numbers, default=[1, 2], help="of synth (default: 1,2)")
    parser.add_argument("--seeds", type=numbers, default=[1, 2], help="a log of each kind for each (default: 1,2)")
    parser.add_argument("--cardinalities", default="small", choices=("small", "criteo"), help="of synth (default: %(default)s)")
    parser.add_argument("--recipes", default="before,default", help="of dlrm-tf train, or before (default: %(default)s)")
    parser.add_argument("--batches", type=numbers, default=[], help="batch sizes (default: the recipe's)")
    args = parser.parse_args()
    if min(args.rows) < 7:
        raise UsageError(f"--rows must be at least 7 each (the last seventh is for testing). Received {args.rows}")
    results: list[dict[str, Any]] = []
    for world in args.worlds:
        for rows in args.rows:
            for seed in args.seeds:
                with tempfile.TemporaryDirectory() as folder:
                    recipes = args.recipes.split(",")
                    results += measure(folder, world, rows, args.cardinalities, seed, recipes, args.batches)
    print(table(results))


if __name__ == "__main__":
    main()
