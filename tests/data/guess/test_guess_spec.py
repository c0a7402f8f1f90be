"""guess_spec: formats, kinds, labels and markers it finds, and that prepare takes what it writes."""

import csv
import gzip
import io
import json

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.data.guess import sample
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.data.synthetic import synth
from dlrm_tf.errors import DataError, UsageError

ROWS = 1500


def columns(seed=0, rows=ROWS):
    """By name, cells of every kind there is."""
    rng = np.random.default_rng(seed)
    tags = np.array(["red", "green", "blue", "black", "white"])
    return {
        "row_id": [f"{i}" for i in range(rows)],
        "clicked": [f"{i}" for i in (rng.random(rows) < 0.2).astype(int)],
        "version": ["7"] * rows,
        "price": [f"{x:.2f}" for x in rng.exponential(20, rows)],
        "views": [f"{n}" if n != 3 else "NULL" for n in rng.geometric(0.01, rows)],
        "user_id": [f"{n}" for n in rng.integers(0, 400, rows)],
        "model": [f'{n},5 "inch"' for n in rng.integers(0, 9, rows)],
        "zip": [f"{n:05}" for n in rng.integers(0, 99999, rows)],
        "C14": [f"{15000 + n}" for n in rng.integers(0, 700, rows)],
        "tags": ["|".join(rng.choice(tags, rng.integers(0, 4), replace=False)) for _ in range(rows)],
        "flag": [f"{n}" for n in rng.integers(0, 2, rows)],
        "age": [f"{n}" if n > 20 else "" for n in rng.integers(18, 80, rows)],
        "code": [f"{n}" for n in rng.integers(0, 40, rows)],
        "size": [f"{n}" for n in 1000 + rng.integers(0, 400, rows)],
        "amt": [f"{n}" for n in 2000 + rng.integers(0, 400, rows)],
        "note": [""] * rows,
    }


KINDS = {
    "row_id": "skip",
    "clicked": "label",
    "version": "skip",
    "price": "float",
    "views": "int",
    "user_id": "categorical",
    "model": "categorical",
    "zip": "categorical",
    "C14": "categorical",
    "tags": "categorical",
    "flag": "categorical",
    "age": "int",
    "code": "categorical",
    "size": "int",
    "amt": "categorical",
    "note": "skip",
}


def write(path, table, *, separator=",", header=True):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerows([list(table), *zip(*table.values())] if header else zip(*table.values()))
    text = file.getvalue().encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz"])
@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_kinds_of_a_csv(tmp_path, name, separator):
    guess = dlrm_tf.guess_spec(write(tmp_path / name, columns(), separator=separator))
    assert dict(guess.spec.columns) == KINDS
    assert (guess.spec.separator, guess.spec.header, guess.spec.quote) == (separator, True, '"')
    assert (guess.spec.missing, guess.spec.labels, guess.sampled, guess.rows) == (("NULL",), "0/1", ROWS, ROWS)
    assert guess.spec.bags == {"tags": dlrm_tf.Bag("|", 3, pooling="mean")}
    assert guess.positives == pytest.approx(0.2, abs=0.04)  # four standard deviations
    found = {column.name: column for column in guess.columns}
    views = columns()["views"]
    assert found["views"].missing == views.count("NULL") / ROWS
    # Of a log that was read whole the number is no estimate: of keys, those of the cells.
    assert found["user_id"].distinct == (len(set(columns()["user_id"])),) * 3
    assert found["tags"].distinct.estimate == 5
    text = str(guess)
    assert text.startswith("1,500 rows looked at: 4 dense features, 8 categorical ones") and "another value in every row" in text
    assert "note: 'NULL' stands for a missing number in views" in text


def test_prepare_takes_what_the_verb_writes(tmp_path, capsys):
    log, spec = str(write(tmp_path / "log.csv", columns())), str(tmp_path / "my spec.json")
    assert main(["spec", log, "-o", spec]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert command.endswith(f"look at it, then: dlrm-tf prepare {log} --spec '{spec}' -o data")
    assert main(["prepare", log, "--spec", spec, "-o", str(tmp_path / "data"), "--on-bad-line", "stop"]) == 0
    records = dlrm_tf.Records.open(tmp_path / "data")
    assert records.rows("train") + records.rows("test") == ROWS
    assert records.sizes == tuple(
        len(set(cells)) if name != "tags" else 6 for name, cells in columns().items() if KINDS[name] == "categorical"
    )
    (tmp_path / "my spec.json").write_text("mine")
    assert main(["spec", log, "-o", spec]) == 2 and (tmp_path / "my spec.json").read_text() == "mine"
    assert main(["spec", log, "-o", spec, "--force"]) == 0 and FeatureSpec.load(spec) == records.spec


@pytest.fixture(scope="module")
def criteo(tmp_path_factory):
    """A generated log and the distinct values of its columns."""
    path = tmp_path_factory.mktemp("criteo") / "log.tsv"
    synth(path, rows=20_000, seed=3)
    cells = zip(*(line.split("\t") for line in path.read_text().splitlines()))
    return path, [len(set(column) - {""}) for column in cells]


def test_estimates_of_a_sample(criteo, monkeypatch):
    path, wanted = criteo
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 1 << 19)
    guess = dlrm_tf.guess_spec(path)
    assert guess.spec is CRITEO and "note: these are the columns of the preset criteo_kaggle" in str(guess)
    assert guess.sampled < 2500 and guess.rows == pytest.approx(20_000, rel=0.02)  # lines differ in length by some per cent
    ratio = guess.rows / guess.sampled
    errors = []
    for column, count in zip(guess.columns, wanted):
        # Rows of the generator are independent, so that places of the file are a uniform sample: GEE's bounds hold.
        assert column.distinct.least <= count <= column.distinct.most
        errors.append(abs(np.log(column.distinct.estimate / count)))
    # What the bounds promise, and what is typical (seen: at most 2.2, half of the columns within 1.3).
    assert np.exp(max(errors)) <= ratio**0.5 and np.exp(np.median(errors)) < 1.5


def test_several_files_are_one_log(criteo, tmp_path):
    lines = criteo[0].read_text().splitlines(keepends=True)
    for i in range(10):
        (tmp_path / f"part-{i}.tsv").write_text("".join(lines[200 * i : 200 * i + 200]))
    guess = dlrm_tf.guess_spec([tmp_path / f"part-{i}.tsv" for i in range(10)])
    assert guess.spec is CRITEO and guess.sampled == 1600 and guess.rows == pytest.approx(2000, rel=0.03)


def test_avazu_is_known_by_its_header(tmp_path):
    avazu = FeatureSpec.preset("avazu")
    rng = np.random.default_rng(0)
    path = tmp_path / "train.csv"
    names = [name for name, _ in avazu.columns]
    path.write_text("".join(",".join(row) + "\n" for row in [names, *rng.integers(0, 2, (50, 24)).astype(str)]))
    assert dlrm_tf.guess_spec(path).spec is avazu


CATEGORICAL = "categorical"


@pytest.mark.parametrize(
    "text, columns, options",
    [
        # Without a header, labels -1/1 in the last column.
        ("a|1.5|-1\nb|2.5|1\n", [CATEGORICAL, "float", "label"], {"separator": "|", "labels": "-1/1"}),
        # Two columns of 0 and 1: the first is the label, unless another has the name of one.
        ("1\tx\t0\n0\ty\t1\n", ["label", CATEGORICAL, CATEGORICAL], {}),
        ("a,b,y\n1,x,0\n0,y,1\n", [CATEGORICAL, CATEGORICAL, "label"], {"separator": ",", "header": True}),
        # A byte-order mark; \x01 as Hive has it; a label of decimals; an empty cell.
        ("\ufeffx\x011.0\x01\ny\x010.0\x014\n", [CATEGORICAL, "label", CATEGORICAL], {"separator": "\x01"}),
        # No label.
        ("name,age\nx,30\ny,41\n", [CATEGORICAL, "int"], {"separator": ",", "header": True}),
    ],
)
def test_small_logs(tmp_path, text, columns, options):
    (tmp_path / "log").write_text(text, encoding="utf-8")
    guess = dlrm_tf.guess_spec(tmp_path / "log")
    header = text.splitlines()[0].split(",") if options.get("header") else [f"column_{i + 1}" for i in range(len(columns))]
    assert guess.spec == FeatureSpec(tuple(zip(header, columns)), **options)
    assert ("no column looks like a label" in str(guess)) == (guess.positives is None)
    assert FeatureSpec.from_dict(json.loads(json.dumps(guess.spec.to_dict()))) == guess.spec


@pytest.mark.parametrize(
    "text, message",
    [
        ("one\ntwo\n", r"log: wanted lines of at least two columns, .*Received 'one"),
        ("", "log: wanted lines of at least two columns"),
        ("1\t2.5\n0\t3.5\n", r"log: wanted at least one column that can be a categorical feature. Received column_1 \(label\)"),
    ],
)
def test_what_is_no_log_of_categories(tmp_path, text, message):
    (tmp_path / "log").write_text(text)
    with pytest.raises(DataError, match=message):
        dlrm_tf.guess_spec(tmp_path / "log")
    assert main(["spec", str(tmp_path / "log"), "-o", str(tmp_path / "s.json")]) == 1 and not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    "header, expected, option",
    [
        (",click,site", ("column_1", "click", "site"), "skip"),  # row numbers, as pandas writes them
        ("a,click,a", ("column_1", "click", "column_3"), "skip"),
        ("n, click, site", ("n", " click", " site"), True),
    ],
)
def test_headers_with_odd_names(tmp_path, header, expected, option):
    """A header is never taken for a row; names that can't be found by are replaced, and the line passed over."""
    (tmp_path / "log").write_text(header + "\n" + "".join(f"{n}, {n % 2}, s{n % 3}\n" for n in range(30)))
    spec = dlrm_tf.guess_spec(tmp_path / "log").spec
    assert spec == FeatureSpec(tuple(zip(expected, ("int", "label", CATEGORICAL))), ",", header=option)
    records = dlrm_tf.prepare(tmp_path / "log", tmp_path / "out", spec=spec, test_fraction=0)
    assert records.rows("train") == 30 and records.vocabulary().keys(expected[2]) == [" s0", " s1", " s2"]


def test_pipes_are_refused():
    with pytest.raises(UsageError, match="no pipe: prepare reads it again. Received -"):
        dlrm_tf.guess_spec("-")
