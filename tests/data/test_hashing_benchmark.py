"""What `bench hashing` compares, and its table, by hand."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
from hashing import FULL, KINDS, spaces, table  # noqa: E402

SIZES = {"C1": 5000, "C2": 10, "C3": 1000}


def test_only_large_features_are_hashed():
    assert [kind for kind in KINDS if not spaces(kind, SIZES, 1000)] == [kind for kind in KINDS if kind[0] in "fm"]
    assert spaces("hash 1/10", SIZES, 1000) == {"hashed": {"C1": 500, "C3": 100}}
    assert spaces("unified 1/10", SIZES, 1000) == {"hashed": {"C1": 600, "C3": 600}, "unified": {"rare": ("C1", "C3")}}


def test_differences_are_taken_seed_by_seed():
    cells = [
        {"seed": seed, "kind": kind, "auc": auc, "logloss": 0.5 + lost, "ids": ids}
        for kind, ids, figures in ((FULL, 1000, [(0.7, 0), (0.8, 0)]), ("hash 1/10", 100, [(0.69, 0.001), (0.79, 0.003)]))
        for seed, (auc, lost) in enumerate(figures, 1)
    ]
    cells.append({"seed": 3, "kind": "hash 1/10", "auc": 0.1, "logloss": 9.0, "ids": 7})  # its full vocabulary is not done yet
    rows = table(cells).splitlines()
    assert rows[2].startswith("| full vocabulary | 1,000 | 0.7500 ± ") and len(rows) == 4
    # t = 12.706 at one degree of freedom: 12.706 * 0.001 of the logloss.
    assert rows[3].startswith("| hash 1/10 | 100 | 0.7400 ± ") and rows[3].endswith("| -0.0100 ± 0.0000 | +0.0020 ± 0.0127 |")
