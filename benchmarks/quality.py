"""Quality on rows whose best AUC and logloss are known: recipes, heads, table dtypes, size budgets, later days, rare keys.

    python benchmarks/quality.py -o quality_out                              a small study of some 30 trainings
    python benchmarks/quality.py -o quality_out --rows 2000000 --seeds 5     a larger one
    python benchmarks/quality.py -o quality_out --recipes default --heads dot,cross --dtypes int8 --budgets 5

Rows are those of `synth --world 2`. A seed gives the data and the first weights. For every seed, each recipe is trained with each
head; the first recipe with the first head also without the keys of fewer rows than each of `--min-counts`. What is measured of a
trained model: its weights on the last seventh of day 0, its weights on later days, TFLite files of all ids and of budgets, which
are percentages of the float32 weights.

Every finished measurement is a line of DIR/cells.jsonl. The same call continues an interrupted study, another call with the same
rows adds to it; DIR/work has the data and the runs of unfinished seeds. At the end DIR/quality.md and DIR/quality.html show means
over the seeds with 95 % intervals (Student's t).
"""

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any, Optional

from dlrm_tf.errors import DLRMError, UsageError, require
from dlrm_tf.files import write_file

# What a head changes in the architecture of a recipe.
HEADS: dict[str, dict[str, Any]] = {
    "dot": {"interaction": "dot"},
    "cat": {"interaction": "cat"},
    "cross": {"interaction": "cross"},
    "cross-low-rank": {"interaction": "cross", "cross_rank": 32},
}
FLOAT = "float32"
LEAST_ROWS = 7000


@dataclasses.dataclass(frozen=True)
class Training:
    """One model of the study."""

    seed: int
    recipe: str
    head: str
    min_count: int


class Study:
    """A folder of finished cells, and the work that is under way.

    Args:
      folder: for everything that is made.
      settings: `rows`, `later_rows` and `cardinalities`, the same for all cells of a folder.

    Raises:
      UsageError: the folder's cells have other settings.
    """

    def __init__(self, folder: str, settings: dict[str, Any]):
        self._path, self._work, self._settings = os.path.join(folder, "cells.jsonl"), os.path.join(folder, "work"), settings
        kept = os.path.join(folder, "settings.json")
        if os.path.exists(kept):
            with open(kept, encoding="utf-8") as file:
                theirs = json.load(file)
            if theirs != settings:
                raise UsageError(f"{folder}: wanted a study of {settings}. Received one of {theirs}; choose another -o")
        write_file(kept, json.dumps(settings))
        self.cells = read_cells(self._path)

    def missing(self, training: Training, measures: list[str]) -> list[str]:
        """Those of `measures` that are not done."""
        done = {cell["measure"] for cell in self.cells if all(cell[k] == v for k, v in dataclasses.asdict(training).items())}
        return [measure for measure in measures if measure not in done]

    def add(self, training: Training, measure: str, figures: dict[str, Any]) -> None:
        """Writes one finished cell, to the disk."""
        cell = {**dataclasses.asdict(training), "measure": measure, **figures}
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.cells.append(cell)

    def run(self, training: Training, measures: list[str]) -> Iterator[str]:
        """Trains one model and measures what is missing; yields the name of each measure when it is done."""
        from dlrm_tf import fit
        from dlrm_tf.export.tflite.export import TFLiteExporter

        records, truth = self._data(training, 0)
        recipe = training.recipe.replace(os.sep, "_")  # may be a file's path
        run = os.path.join(self._place(training), f"run-{recipe}-{training.head}-{training.min_count}")
        trained = fit(records, run, **_architecture(training, records), recipe=training.recipe, seed=training.seed, resume=True)
        common = {"ids": sum(records.sizes), "seconds": sum(entry["seconds"] for entry in trained.history)}
        exporter = TFLiteExporter(trained.best_weights, data=records, quiet=True)  # ranks the ids once for all files
        for measure in measures:
            kind, _, value = measure.partition(" ")
            if kind == "day":
                later, their_truth = self._data(training, int(value))
                figures = _measured(later, trained.best_weights, their_truth, "train")
            elif kind == FLOAT:
                figures = _measured(records, trained.best_weights, truth, "test")
            else:
                figures = {**truth, **_exported(exporter, kind, value, f"{run}.tflite")}
            self.add(training, measure, {**common, **figures})
            yield measure

    def remove_work(self, seed: Optional[int] = None) -> None:
        """Removes the data and runs of a seed whose cells are all there; of all seeds where none is given."""
        shutil.rmtree(self._work if seed is None else os.path.join(self._work, f"seed-{seed}"), ignore_errors=True)

    def _place(self, training: Training) -> str:
        return os.path.join(self._work, f"seed-{training.seed}")

    def _data(self, training: Training, day: int) -> tuple[Any, dict[str, float]]:
        """Prepared rows of one day, with the ids of day 0, and the best figures any model can reach on what is measured."""
        from dlrm_tf import Records, prepare, synth
        from dlrm_tf.data.record_files import MANIFEST, VOCABULARY
        from dlrm_tf.data.vocabulary import Vocabulary

        place = self._place(training)
        log, folder = os.path.join(place, f"day-{day}.tsv"), os.path.join(place, f"day-{day}-{training.min_count}")
        if not os.path.exists(f"{log}.json"):  # written after the rows
            rows = self._settings["later_rows" if day else "rows"]
            options = {"seed": training.seed, "world": 2, "day": day, "cardinalities": self._settings["cardinalities"]}
            synth(log, rows, quiet=False, **options)
        if not os.path.exists(os.path.join(folder, MANIFEST)):
            if day:
                first = os.path.join(place, f"day-0-{training.min_count}", VOCABULARY)
                prepare(log, folder, vocabulary=Vocabulary.load(first), test_fraction=0.0)
            else:
                prepare(log, folder, min_count=training.min_count)
        with open(f"{log}.json", encoding="utf-8") as file:
            report = json.load(file)
        part = "" if day else "_test"
        return Records.open(folder), {f"best_{name}": report[f"best_{name}{part}"] for name in ("auc", "logloss")}


def read_cells(path: str) -> list[dict[str, Any]]:
    """The finished cells; a last line that an interruption cut is left out, and cut off in the file."""
    if not os.path.exists(path):
        return []
    with open(path, "rb+") as file:
        text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _architecture(training: Training, records: Any) -> dict[str, Any]:
    """The recipe's architecture with the training's head, as `fit` takes it."""
    from dlrm_tf.train.options import FitOptions
    from dlrm_tf.train.resolve import new_config, resolve

    plan = resolve(FitOptions(recipe=training.recipe, quiet=True), records)
    return {"config": dataclasses.replace(new_config(plan.options, plan.records), **HEADS[training.head])}


def _measured(records: Any, weights: str, truth: dict[str, float], split: str) -> dict[str, Any]:
    """The float model's figures."""
    from dlrm_tf import evaluate
    from dlrm_tf.export.tflite.report import QUALITY
    from dlrm_tf.weights.reader import WeightsReader

    result = evaluate(records, weights, split=split, quiet=True)
    with WeightsReader(weights) as reader:
        size = 4 * reader.config.num_parameters
    return {**{name: result[name] for name in QUALITY}, "bytes": size, **truth}


def _exported(exporter: Any, dtype: str, budget: str, path: str) -> dict[str, Any]:
    """The figures of a TFLite file with rows of `dtype`, of all ids or of a budget such as "5%"."""
    size = None if budget == "all" else int(4 * exporter.source.config.num_parameters * float(budget.rstrip("%")) / 100)
    try:
        report = exporter.export(path, table_dtype=dtype, max_size=size, max_auc_loss=1.0)
    except DLRMError as e:
        if type(e) is not DLRMError:  # a kind of its own is no budget too small
            raise
        return {"refused": str(e)}
    os.remove(path)
    return {**report.quality, "bytes": report.bytes, "ids": report.ids}


def trainings(args: argparse.Namespace) -> list[Training]:
    """Every model of the study, seed by seed."""
    models = []
    for seed in range(1, args.seeds + 1):
        models += [Training(seed, recipe, head, 1) for recipe, head in itertools.product(args.recipes, args.heads)]
        models += [Training(seed, args.recipes[0], args.heads[0], count) for count in args.min_counts if count > 1]
    return models


def measures(args: argparse.Namespace) -> list[str]:
    """What is measured of every model."""
    sizes = ["all", *(f"{budget:g}%" for budget in args.budgets)]
    return [FLOAT, *(f"{dtype} {size}" for dtype in args.dtypes for size in sizes), *(f"day {day}" for day in args.days)]


def _list_of(kind: Any) -> Any:
    def parse(text: str) -> list:
        try:
            return [kind(part) for part in text.split(",") if part]
        except ValueError:
            raise argparse.ArgumentTypeError(f"wanted values with commas. Received {text!r}") from None

    return parse


def main(argv=None) -> None:
    """Measures what is missing and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", default="quality_out", metavar="DIR", help="folder of the study (default: quality_out)")
    parser.add_argument("--rows", type=int, default=200_000, help="rows of day 0, a seventh for testing (default: %(default)s)")
    parser.add_argument("--cardinalities", default="small", choices=("small", "criteo"), help="of synth (default: small)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, 1 to N (default: %(default)s)")
    recipes = "recipes of dlrm-tf train, or JSON files (default: default,mindspore)"
    parser.add_argument("--recipes", type=_list_of(str), default=["default", "mindspore"], help=recipes)
    parser.add_argument("--heads", type=_list_of(str), default=list(HEADS), help=f"(default: {','.join(HEADS)})")
    parser.add_argument("--dtypes", type=_list_of(str), default=["int8", "int4"], help="of the table (default: int8,int4)")
    budgets = "percentages of the float32 weights (default: 15,7,5)"
    parser.add_argument("--budgets", type=_list_of(float), default=[15.0, 7.0, 5.0], help=budgets)
    parser.add_argument("--days", type=_list_of(int), default=[1, 5], help="later days (default: 1,5)")
    counts = "rows of a key below which it is out of vocabulary (default: 1,2,10)"
    parser.add_argument("--min-counts", type=_list_of(int), default=[1, 2, 10], help=counts)
    args = parser.parse_args(argv)
    unknown = [*(set(args.heads) - set(HEADS)), *(set(args.dtypes) - {"int8", "int4"})]
    if unknown or not args.recipes or not args.heads or args.seeds < 1:
        raise UsageError(f"wanted recipes, heads of {', '.join(HEADS)}, dtypes of int8, int4, and seeds. Received {unknown}")
    if args.rows < LEAST_ROWS:
        raise UsageError(f"--rows must be at least {LEAST_ROWS} (the last seventh is for testing). Received {args.rows}")
    require("matplotlib", "report")
    from dlrm_tf.progress import Progress
    from dlrm_tf.reports.quality_page import tables, write_quality_page

    settings = {"rows": args.rows, "later_rows": max(args.rows // 4, LEAST_ROWS), "cardinalities": args.cardinalities}
    study, models, wanted = Study(args.output, settings), trainings(args), measures(args)
    todo = {model: study.missing(model, wanted) for model in models}
    done = len(models) * len(wanted) - sum(map(len, todo.values()))
    with Progress("quality", len(models) * len(wanted), "measurements", interval=0.0, done=done) as progress:
        for seed, group in itertools.groupby(models, key=lambda model: model.seed):
            for model in group:
                if todo[model]:
                    for measure in study.run(model, todo[model]):
                        progress.update(1, f"seed {seed}, {model.recipe}, {model.head}, min count {model.min_count}: {measure}")
            study.remove_work(seed)
    study.remove_work()
    print(tables(study.cells))
    page = write_quality_page(study.cells, args.output)
    print(f"page: {page}", file=sys.stderr)


if __name__ == "__main__":
    main()
