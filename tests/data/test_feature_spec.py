"""FeatureSpec: positions, the file, and what is refused."""

import json

import pytest

from dlrm_tf.data.spec import CRITEO, FeatureSpec
from dlrm_tf.errors import DataError

COLUMNS = [["id", "skip"], ["c", "categorical"], ["y", "label"], ["x", "float"], ["n", "int"]]


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


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"columns": COLUMNS[:2]}, "exactly one label column. Received 0"),
        ({"columns": COLUMNS + [["z", "label"]]}, "exactly one label column. Received 2"),
        ({"columns": [["y", "label"]]}, "at least one categorical"),
        ({"columns": COLUMNS + [["c", "skip"]]}, "column names must be different. Received 'c' twice"),
        ({"columns": COLUMNS + [["d", "string"]]}, "kind of column 'd' must be one of .* Received 'string'"),
        ({"columns": COLUMNS, "separator": ";;"}, "separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "separator": "\0"}, "separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "separator": 7}, "separator must be one printable ASCII character"),
        ({"columns": COLUMNS, "separator": "\n"}, "separator must be one printable ASCII character"),
        ({"columns": [1]}, r"must be a list of \[name, kind\]"),
        ({"columns": COLUMNS, "quote": "'"}, "wanted an object with"),
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
