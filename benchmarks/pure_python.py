"""Upstream's preprocessing, straightforward in pure Python: what `prepare` must equal (tests/data) and is measured against.

Written from the rules of MindSpore models' research/recommend/dlrm/src/preprocess_data.py: a good line has 40 fields; an id
is the order of first appearance in its column over all good lines; integers: empty and negative are 0; the last seventh of all
lines is the test split. Like upstream it keeps every row in memory.
"""

DENSE, CATEGORICAL = 13, 26


def preprocess(path: str) -> dict:
    """Reads a Criteo TSV.

    Returns:
      `keys`: per column a dict key -> id in id order; `train` and `test`: lists of `(label, 13 values, 26 ids)`; `lines`, `bad`.
    """
    keys: list[dict[str, int]] = [{} for _ in range(CATEGORICAL)]
    rows, lines = [], 0
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.strip("\n").split("\t")
            if len(fields) == 1 + DENSE + CATEGORICAL:
                values = [max(int(field), 0) if field else 0 for field in fields[1 : 1 + DENSE]]
                ids = [known.setdefault(field, len(known)) for known, field in zip(keys, fields[1 + DENSE :])]
                rows.append((lines, int(fields[0]), values, ids))
            lines += 1
    train_lines = lines - lines // 7
    return {
        "keys": keys,
        "train": [row[1:] for row in rows if row[0] < train_lines],
        "test": [row[1:] for row in rows if row[0] >= train_lines],
        "lines": lines,
        "bad": lines - len(rows),
    }
