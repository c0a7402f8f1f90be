"""One log with everything a spec can say, in every form it can come in: the same bytes."""

import csv
import dataclasses
import gzip
import json
import random

import pytest

import dlrm_tf
from dlrm_tf import Bag, FeatureSpec

pa = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")
pq = pytest.importorskip("pyarrow.parquet")

COLUMNS = (
    *(("y", "label"), ("shown", "categorical"), ("bought", "categorical"), ("query", "categorical"), ("user", "categorical")),
    *(("site", "categorical"), ("note", "skip")),
)
# No dense features; two tables are shared, one of hashes; labels -1 and 1.
SPEC = FeatureSpec(
    COLUMNS,
    bags={"bought": Bag("|", 2, "mean"), "user": Bag(";", 3)},
    missing=("NULL", "\\N"),
    labels="-1/1",
    hashed={"query": 50, "user": 50, "site": 9},
    shared={"item": ("shown", "bought"), "word": ("query", "user")},
)
CSV = dataclasses.replace(SPEC, separator=",", header=True, quote='"')
OPTIONS = {"shard_lines": 16, "min_count": 2, "max_ids": {"shown": 20}, "last_seen": "2026-11-25", "max_bad_share": 1.0}


def make_rows(count=150):
    """Cells as text, None where missing; a label of 0 makes a bad line."""
    rng = random.Random(0)
    rows = []
    for _ in range(count):
        shown = rng.choice([None, f"{rng.randrange(40):08x}", "x y", "é"])
        bought = rng.choice([None, "|".join(f"{rng.randrange(40):08x}" for _ in range(rng.randrange(1, 5)))])
        query = rng.choice([None, f"a query, number {rng.randrange(9)}", "it's"])
        user = ";".join(f"u{rng.randrange(99)}" for _ in range(rng.randrange(1, 5)))
        label = rng.choice(["-1", "1", "1", "-1", "1", "-1", "0"])
        rows.append([label, shown, bought, query, user, str(rng.randrange(30)), "n"])
    return rows


def write_text(path, rows, spec):
    """Rows as text; a missing cell is empty or one of the markers."""
    rng = random.Random(1)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(
            file, delimiter=spec.separator, quoting=csv.QUOTE_ALL if spec.quote else csv.QUOTE_NONE, quotechar='"'
        )
        if spec.header:
            writer.writerow([name for name, _ in COLUMNS])
        writer.writerows([[rng.choice(["", *spec.missing]) if cell is None else cell for cell in row] for row in rows])
    return path


def table_of(rows):
    """Rows as a table whose labels are numbers and whose bags are lists."""
    columns = dict(zip([name for name, _ in COLUMNS], zip(*rows)))
    columns["y"] = list(map(int, columns["y"]))
    for name, bag in SPEC.bags.items():
        columns[name] = [None if cell is None else cell.split(bag.separator) for cell in columns[name]]
    return pa.table({name: list(cells) for name, cells in columns.items()})


def tree(folder):
    """All files of a folder; of the manifest what does not depend on how the rows came."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    del manifest["spec"], manifest["counts"]["bad_examples"]
    return files, manifest


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """By the name of each form `(input, its spec)`."""
    folder, rows = tmp_path_factory.mktemp("forms"), make_rows()
    table = table_of(rows)
    plain = dataclasses.replace(SPEC, quote="")
    written = write_text(folder / "log.csv", rows, CSV)
    (folder / "log.csv.gz").write_bytes(gzip.compress(written.read_bytes()))
    pq.write_table(table, folder / "log.parquet", row_group_size=40)
    feather.write_feather(table, str(folder / "log.feather"), chunksize=30)
    return {
        "tsv": (write_text(folder / "log.tsv", rows, plain), plain),
        "csv": (written, CSV),
        "packed csv": (folder / "log.csv.gz", CSV),
        "parquet": (folder / "log.parquet", SPEC),
        "feather": (folder / "log.feather", SPEC),
        "frame": (table, SPEC),
    }


@pytest.fixture(scope="module")
def expected(forms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected") / "out"
    log, spec = forms["tsv"]
    records = dlrm_tf.prepare(log, folder, spec=spec, **OPTIONS)
    assert records.manifest["counts"]["bad_examples"] and records.vocabulary().sizes[0] <= 20
    return tree(folder)


@pytest.mark.parametrize("form", ["csv", "packed csv", "parquet", "feather", "frame", "pandas", "polars"])
def test_the_same_bytes(forms, expected, form, tmp_path):
    inputs, spec = forms[form if form in forms else "frame"]
    if form == "pandas":
        inputs = pytest.importorskip("pandas") and inputs.to_pandas()
    elif form == "polars":
        inputs = pytest.importorskip("polars").from_arrow(inputs)
    dlrm_tf.prepare(inputs, tmp_path / "out", spec=spec, **OPTIONS)
    assert tree(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tsv", "csv", "packed csv", "parquet", "feather"])
def test_the_same_bytes_with_spark(request, forms, expected, form, tmp_path):
    pytest.importorskip("pyspark", reason="needs Python 3.11")
    inputs, spec = forms[form]
    engine = dlrm_tf.SparkEngine(context=request.getfixturevalue("context"), part_bytes=4000)
    dlrm_tf.prepare(inputs, tmp_path / "out", spec=spec, engine=engine, **OPTIONS)
    assert tree(tmp_path / "out") == expected


@pytest.mark.parametrize("form", ["tsv", "csv", "parquet", "feather", "frame"])
def test_a_grown_vocabulary_and_no_drift(forms, form, tmp_path):
    """The vocabulary brings hashes and tables; the same rows once more bring no keys, and have not drifted."""
    inputs, spec = forms[form]
    first = dlrm_tf.prepare(inputs, tmp_path / "first", spec=spec, max_bad_share=1.0)
    plain = dataclasses.replace(spec, hashed={}, shared={})
    options = {"spec": plain, "vocabulary": first.vocabulary(), "grow": True, "max_bad_share": 1.0}
    again = dlrm_tf.prepare(inputs, tmp_path / "again", **options)
    assert again.vocabulary().fingerprint == first.vocabulary().fingerprint
    assert (tmp_path / "again" / "train" / "00000.bin").read_bytes() == (tmp_path / "first" / "train" / "00000.bin").read_bytes()
    report = dlrm_tf.drift(tmp_path / "first", tmp_path / "again")
    assert max(feature.psi for feature in report.features) == 0
