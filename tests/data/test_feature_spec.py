"""FeatureSpec: positions, the file, and what is refused."""

import json

import pytest

from dlrm_tf.data.bag import Bag
from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.errors import DataError

COLUMNS = [["id", "skip"], ["c", "categorical"], ["y", "label"], ["x", "float"], ["n", "int"]]
BAG = {"separator": "|", "max_keys": 3}


def test_criteo():
    assert CRITEO.label_column == 0
    assert CRITEO.dense_columns == tuple(range(1, 14))
    assert CRITEO.categorical_columns == tuple(range(14, 40))
    assert CRITEO.categorical_names[0] == "C1"


def test_file(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"columns": COLUMNS, "separator": ",", "header": True}))
    spec = FeatureSpec.load(path)
    assert (spec.label_column, spec.dense_columns, spec.categorical_columns) == (2, (3, 4), (1,))
    assert (spec.dense_names, spec.separator, spec.header) == (("x", "n"), ",", True)
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_bags(tmp_path):
    """Each categorical feature has its range of id columns; a spec without bags is written as before there were any."""
    columns = (*COLUMNS, ["d", "categorical"], ["e", "categorical"])
    bags = {"c": BAG, "e": {"separator": "\x02", "max_keys": 2, "pooling": "mean", "weight_separator": "\x03"}}
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"columns": columns, "bags": bags}))
    spec = FeatureSpec.load(path)
    assert spec.bags == {"c": Bag("|", 3), "e": Bag("\x02", 2, pooling="mean", weight_separator="\x03")}
    assert (spec.hot_sizes, spec.id_columns, spec.poolings, spec.weighted) == ((3, 1, 2), 6, ("sum", "sum", "mean"), True)
    assert spec.id_ranges == (slice(0, 3), slice(3, 4), slice(4, 6))
    assert FeatureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(FeatureSpec(columns))
    rows = FeatureSpec.of(("x", "n"), ("c", "d", "e"), bags={"c": Bag("\t", 3)})
    assert (rows.categorical_names, rows.hot_sizes, rows.weighted) == (("c", "d", "e"), (3, 1, 1), False)

    plain = FeatureSpec(columns)
    assert json.dumps(plain.to_dict()) == json.dumps({"columns": columns, "separator": "\t", "header": False})
    assert (plain.hot_sizes, plain.id_columns, plain.weighted) == ((1, 1, 1), 3, False)


def test_what_has_its_default_is_left_out(tmp_path):
    """A spec is written as before there was more to say, and read back as it was."""
    values = {"columns": COLUMNS, "separator": ",", "header": "skip"}
    said = {"quote": '"', "escape": "\\", "missing": ["NULL", "\\N", "nan"], "labels": "-1/1"}
    assert FeatureSpec.from_dict(values).to_dict() == values
    spec = FeatureSpec.from_dict({**values, **said})
    assert spec.to_dict() == {**values, **said}
    assert FeatureSpec.from_dict(spec.to_dict()) == spec
    assert FeatureSpec.from_dict({**values, "quote": ""}).quoting is None
    without = FeatureSpec.from_dict({"columns": COLUMNS[:2]})
    assert (without.label_column, spec.label_column) == (None, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": COLUMNS + [["z", "label"]]}, "at most one label column. Received 2"),
        ({"columns": [["y", "label"]]}, "at least one categorical"),
        ({"columns": COLUMNS + [["c", "skip"]]}, "column names must be different. Received 'c' twice"),
        ({"columns": COLUMNS + [["d", "string"]]}, "kind of column 'd' must be one of .* Received 'string'"),
        ({"columns": COLUMNS, "separator": ";;"}, "separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "separator": "\0"}, "separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "separator": 7}, "separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "separator": "\n"}, "separator must be one printable ASCII character"),
        ({"columns": [1]}, r"must be a list of \[name, kind\]"),
        ({"columns": COLUMNS, "quotes": "'"}, "wanted an object with"),
        ({"columns": COLUMNS, "quote": "\t"}, r"quote must be one printable .* another one than '\\t'. Received '\\t'"),
        ({"columns": COLUMNS, "quote": "''"}, "quote must be one printable ASCII character"),
        ({"columns": COLUMNS, "quote": "0"}, "no letter or digit"),
        ({"columns": COLUMNS, "quote": "'", "escape": "'"}, r"escape must be .* than '\\t' and \"'\". Received"),
        ({"columns": COLUMNS, "escape": "^"}, r"escape must stand beside quote. Received '\^' without one"),
        ({"columns": COLUMNS, "header": "names"}, "header must be true, false or 'skip'. Received 'names'"),
        ({"columns": COLUMNS, "labels": "1/2"}, "labels must be one of 0/1, -1/1. Received '1/2'"),
        ({"columns": COLUMNS, "missing": "NULL"}, "missing must be a list of texts. Received 'NULL'"),
        ({"columns": COLUMNS, "missing": [""]}, "missing must have texts of one line that are no .*Received ''"),
        (
            {"columns": COLUMNS, "missing": ["NULL", "-1"]},
            "missing must have texts of one line that are no .*Received '-1'",
        ),
        ({"columns": COLUMNS, "missing": [None]}, "missing must have texts of one line that are no numbers .*Received None"),
        ({"columns": COLUMNS, "quote": "|", "bags": {"c": BAG}}, r"other characters .* Received '\|' for both"),
        ({"columns": COLUMNS, "bags": None}, "bags must be an object, a bag for each name. Received None"),
        ({"columns": COLUMNS, "bags": {"x": BAG}}, "bags must be of categorical columns, c. Received 'x'"),
        ({"columns": COLUMNS, "bags": {"c": 5}}, "column 'c': bag: wanted an object with separator and max_keys.* Received 5"),
        ({"columns": COLUMNS, "bags": {"c": {"separator": "|"}}}, "wanted an object with separator and max_keys"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "size": 3}}}, "wanted an object with separator and max_keys"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "separator": ""}}}, "bag: separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "separator": None}}}, "bag: separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "separator": "\t"}}}, r"other characters .* Received '\\t' for both"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "weight_separator": "\n"}}}, "weight_separator must be one printable"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "weight_separator": "|"}}}, "another character than separator"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "weight_separator": "."}}}, "another character than separator"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "max_keys": 0}}}, "max_keys must be a whole number from 1 on. Received 0"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "max_keys": True}}}, "max_keys must be a whole number from 1 on"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "max_keys": 2.0}}}, "max_keys must be a whole number from 1 on"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "max_keys": 10**9}}}, "at most 65,536 keys a row .* Received 1,000,000,000"),
        ({"columns": COLUMNS, "bags": {"c": {**BAG, "pooling": "max"}}}, "pooling must be one of sum, mean. Received 'max'"),
        ([], "wanted an object with"),
    ],
)
def test_refused(tmp_path, values, message):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message) as error:
        FeatureSpec.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["label: y", "[" * 20_000])
def test_not_json(tmp_path, text):
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(DataError, match="spec.json"):
        FeatureSpec.load(path)


def test_presets(tmp_path):
    assert FeatureSpec.preset("criteo_kaggle") is CRITEO and FeatureSpec.read("criteo_1tb") == CRITEO
    avazu = FeatureSpec.read("avazu")
    # The header of Kaggle's avazu-ctr-prediction/train.csv.
    header = (
        "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
        "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
    )
    assert ",".join(name for name, _ in avazu.columns) == header
    assert (avazu.separator, avazu.header, avazu.dense_columns, len(avazu.categorical_columns)) == (",", True, (), 21)
    assert avazu.columns[avazu.label_column][0] == "click"
    (tmp_path / "mine.json").write_text(json.dumps(avazu.to_dict()))
    assert FeatureSpec.read(tmp_path / "mine.json") == avazu
    with pytest.raises(
        DataError, match="avasu: wanted a preset .criteo_kaggle, criteo_1tb, avazu. or a JSON file. Received neither"
    ):
        FeatureSpec.read("avasu")
    with pytest.raises(DataError, match="preset must be one of criteo_kaggle, criteo_1tb, avazu. Received 'x'"):
        FeatureSpec.preset("x")
    (tmp_path / "mine.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="mine.json: wanted a JSON file. Received bytes that are not UTF-8"):
        FeatureSpec.read(tmp_path / "mine.json")
