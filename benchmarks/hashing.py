"""What fewer rows for rare keys cost: hashed and unified features beside full vocabularies and vocabularies of frequent keys.

    python benchmarks/hashing.py -o hashing_out                              some 30 trainings
    python benchmarks/hashing.py -o hashing_out --rows 1000000 --seeds 5     a larger study

Rows are those of `synth --world 2`, where every key has an effect of its own. A seed gives the data and the first weights. The
features with many keys (`--least-keys`) are hashed: each into a share of its own number of keys (`hash`), or all into one table
that share of all their keys, each with a hash of its own (`unified`). The others keep their vocabularies. Without hashing, the
keys of fewer than n rows are out of vocabulary (`min count`). Every model is trained by the default recipe; figures are those of
the last seventh, differences are taken seed by seed, with 95 % intervals (Student's t).

Every finished training is a line of DIR/cells.jsonl; the same call continues an interrupted study, and adds seeds to it.
"""

import argparse
import dataclasses
import os
import shutil
from collections.abc import Mapping
from typing import Any, Optional

from quality import LEAST_ROWS, Study

from dlrm_tf.errors import UsageError

FIGURES = ("auc", "logloss")
# Share of the keys -> what the table calls it.
SHARES = {"1/2": 2, "1/10": 10, "1/100": 100}
FULL = "full vocabulary"
KINDS = (
    FULL,
    *(f"min count {count}" for count in (2, 5, 20)),
    *(f"{way} {share}" for way in ("hash", "unified") for share in SHARES),
)


@dataclasses.dataclass(frozen=True)
class Training:
    """One model of the study."""

    seed: int
    kind: str


def spaces(kind: str, sizes: Mapping[str, int], least_keys: int) -> dict[str, Any]:
    """Fields of a feature spec.

    Args:
      kind: one of `KINDS`.
      sizes: number of keys of each feature.
      least_keys: of a feature that is hashed.
    """
    way, _, share = kind.partition(" ")
    large = {name: size for name, size in sizes.items() if size >= least_keys}
    if way == "hash":
        return {"hashed": {name: max(size // SHARES[share], 1) for name, size in large.items()}}
    if way == "unified":
        rows = max(sum(large.values()) // SHARES[share], 1)
        return {"hashed": dict.fromkeys(large, rows), "unified": {"rare": tuple(large)}}
    return {}


class HashingStudy(Study):
    """A folder of finished trainings."""

    def train(self, training: Training) -> None:
        """Makes one model and writes its cell."""
        from dlrm_tf import fit, prepare, synth
        from dlrm_tf.data.records import Records
        from dlrm_tf.data.spec import CRITEO

        place = os.path.join(self._work, f"seed-{training.seed}")
        log, whole = os.path.join(place, "log.tsv"), os.path.join(place, "whole")
        if not os.path.exists(whole):
            os.makedirs(place, exist_ok=True)
            synth(log, self._settings["rows"], seed=training.seed, world=2, cardinalities=self._settings["cardinalities"])
            prepare(log, whole)
        sizes = dict(zip(CRITEO.categorical_names, Records.open(whole).sizes))
        spec = dataclasses.replace(CRITEO, **spaces(training.kind, sizes, self._settings["least_keys"]))
        way, _, count = training.kind.rpartition(" ")
        folder = os.path.join(place, training.kind.replace("/", "-"))
        for unfinished in (folder, f"{folder}-run"):
            shutil.rmtree(unfinished, ignore_errors=True)
        records = prepare(log, folder, spec=spec, min_count=int(count) if way == "min count" else 1)
        trained = fit(records, f"{folder}-run", seed=training.seed, quiet=True)
        self.add(training, "test", {**{name: trained.test[name] for name in FIGURES}, "ids": records.num_ids})
        shutil.rmtree(folder)
        shutil.rmtree(f"{folder}-run")


def table(cells: list[dict[str, Any]]) -> str:
    """Markdown: means over the seeds, and the mean difference from the full vocabulary."""
    from dlrm_tf.reports.mean_interval import MeanInterval

    by_kind = {kind: {cell["seed"]: cell for cell in cells if cell["kind"] == kind} for kind in KINDS}
    lines = ["| ids of rare keys | ids | AUC | AUC beside full | logloss beside full |", "|---|---|---|---|---|"]
    for kind, of_seed in by_kind.items():
        seeds = sorted(of_seed.keys() & by_kind[FULL].keys())
        if not seeds:
            continue
        ids = sum(of_seed[seed]["ids"] for seed in seeds) / len(seeds)
        auc = MeanInterval.of([of_seed[seed]["auc"] for seed in seeds]).text(4)
        beside = [
            MeanInterval.of([of_seed[seed][name] - by_kind[FULL][seed][name] for seed in seeds]).text(4, "+") for name in FIGURES
        ]
        lines.append(f"| {kind} | {ids:,.0f} | {auc} | {' | '.join(beside) if kind != FULL else '|'} |")
    return "\n".join(lines)


def main(argv: Optional[list[str]] = None) -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", default="hashing_out", metavar="DIR", help="folder of the study (default: hashing_out)")
    parser.add_argument("--rows", type=int, default=140_000, help="rows, a seventh for testing (default: %(default)s)")
    parser.add_argument("--cardinalities", default="small", choices=("small", "criteo"), help="of synth (default: small)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, 1 to N (default: %(default)s)")
    parser.add_argument("--least-keys", type=int, default=1000, help="of a feature that is hashed (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.rows < LEAST_ROWS or args.seeds < 1 or args.least_keys < 1:
        raise UsageError(f"--rows must be at least {LEAST_ROWS}, --seeds and --least-keys 1. Received {args}")
    from dlrm_tf.progress import Progress

    settings = {"rows": args.rows, "cardinalities": args.cardinalities, "least_keys": args.least_keys}
    study = HashingStudy(args.output, settings)
    models = [Training(seed, kind) for seed in range(1, args.seeds + 1) for kind in KINDS]
    todo = [model for model in models if study.missing(model, ["test"])]
    with Progress("hashing", len(models), "trainings", interval=0.0, done=len(models) - len(todo)) as progress:
        for model in todo:
            study.train(model)
            progress.update(1, f"seed {model.seed}, {model.kind}")
    study.remove_work()
    print(table(study.cells))


if __name__ == "__main__":
    main()
