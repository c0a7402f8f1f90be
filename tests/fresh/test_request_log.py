"""drift against a server's request log: the same rows in every form give the same figures; hostile logs are refused."""

import gzip
import struct

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_serving.apis")

from google.protobuf.message import DecodeError  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog  # noqa: E402

from dlrm_tf import Bag, DLRMConfig, FeatureSpec, drift, prepare  # noqa: E402
from dlrm_tf.data.features import log_dense  # noqa: E402
from dlrm_tf.errors import DataError, UsageError  # noqa: E402
from dlrm_tf.export.savedmodel.export import _write_warmup  # noqa: E402
from dlrm_tf.fresh.request_log import RequestLogSide  # noqa: E402
from dlrm_tf.serving_api.errors import RequestError  # noqa: E402

COLUMNS = (("y", "label"), ("n", "float"), ("m", "float"), ("c", "categorical"), ("d", "categorical"))
PLAIN = FeatureSpec(COLUMNS, separator=",")
BAGS = FeatureSpec(COLUMNS, separator=",", bags={"c": Bag("|", 3), "d": Bag("|", 2, weight_separator=":")})
PLAIN_ROWS = [(1, "", 3.5, "p", "0000000a"), (0, 0, 0.25, "q", ""), (0, -7, 1e9, "p", "é"), (1, 12, "", "", "0000000b")] * 3
BAG_ROWS = [(1, 1, 2, "p|q|p", "x:0.5|y"), (0, "", 4, "", "y:2"), (0, 5, 6, "q", "x|x:3")] * 3
NAN = float("nan")


def data(folder, rows, spec):
    (folder / "log.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return prepare(folder / "log.csv", folder / "data", spec=spec, test_fraction=0)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return data(tmp_path_factory.mktemp("plain"), PLAIN_ROWS, PLAIN)


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    return data(tmp_path_factory.mktemp("bags"), BAG_ROWS, BAGS)


@pytest.fixture(scope="module")
def side(plain, tmp_path_factory):
    """An empty log of requests for `plain`'s model."""
    return RequestLogSide(str(write(tmp_path_factory.mktemp("side") / "log", [])), plain.spec, plain.vocabulary())


def write(path, logs, compression=None):
    with tf.io.TFRecordWriter(str(path), options=compression) as writer:
        for log in logs:
            writer.write(log if isinstance(log, bytes) else log.SerializeToString())
    return path


def predict(signature="serving_default", **inputs):
    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    for name, value in inputs.items():
        log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


def examples(kind, rows, context=()):
    """A log of tf.Examples, each a dict of lists; features named in `context` are taken from the first row for all."""
    log = PredictionLog()
    model_input = getattr(log, kind).request.input
    given = model_input.example_list_with_context if context else model_input.example_list
    for row in rows:
        example = given.examples.add()
        for name, values in row.items():
            feature = (given.context if name in context else example).features.feature[name]
            field = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0]) if values else bytes]
            del getattr(feature, field).value[:]
            getattr(feature, field).value.extend(values)
    return log


def raw(rows, numbers=2):
    """The rows as `raw` takes them."""
    dense = np.array([[NAN if cell == "" else cell for cell in row[1 : 1 + numbers]] for row in rows], np.float32)
    return dense, [[str(cell).encode() for cell in row[1 + numbers :]] for row in rows]


def forms(records, rows):
    """Each way to send the rows, as a list of logs, and whether it tells missing numbers from 0."""
    dense, keys = raw(rows)
    raw_dense, ids, _, *weights = records.numpy("train")
    prepared = {"dense": log_dense(raw_dense), "categorical": ids}
    if weights:
        prepared["weights"] = weights[0]
    whole = [{"dense": numbers.tolist(), "categorical": row.tolist()} for numbers, row in zip(dense, ids)]
    for i, row in enumerate(whole):
        if weights:
            row["weights"] = weights[0][i].tolist()
    found = {
        "raw": (
            [predict("raw", dense=dense[:5], categorical=keys[:5]), predict("raw", dense=dense[5:], categorical=keys[5:])],
            True,
        ),
        "serving_default": ([predict(**prepared)], False),
        "unnamed": ([predict("", **prepared)], False),
        "int64 ids": ([predict(**{**prepared, "categorical": ids.astype(np.int64)})], False),
        "classify": ([examples("classify_log", whole[:4]), examples("regress_log", whole[4:])], True),
    }
    if not weights:
        same = [{**row, "categorical": whole[0]["categorical"]} for row in whole]
        found["context"] = ([examples("multi_inference_log", same, context=("categorical",))], True)
    return found


@pytest.mark.parametrize("form", ["raw", "serving_default", "unnamed", "int64 ids", "classify"])
@pytest.mark.parametrize("kind", ["plain", "bags"])
def test_the_same_rows_do_not_drift(request, tmp_path, kind, form):
    records, rows = request.getfixturevalue(kind), {"plain": PLAIN_ROWS, "bags": BAG_ROWS}[kind]
    logs, tells_missing = forms(records, rows)[form]
    for compression in (None, "GZIP"):
        found = drift(records, write(tmp_path / f"{compression}.tfrecord", logs, compression))
        assert (found.rows, found.skipped, found.label_rate[1]) == ((len(rows), len(rows)), (0, ""), None)
        assert [feature.psi for feature in found.features] == [0] * 4
        for feature in found.features:
            known = feature.kind == "categorical" or tells_missing
            assert feature.missing[1] == (feature.missing[0] if known else None)
            assert not feature.new


def test_a_client_that_sends_0_for_missing_numbers(tmp_path, plain):
    """To the model 0 and missing are the same; to find drift there because no number is missing any more would be wrong."""
    dense, keys = raw(PLAIN_ROWS)
    found = drift(plain, write(tmp_path / "log", [predict("raw", dense=np.nan_to_num(dense), categorical=keys)]))
    assert [(feature.psi, feature.missing[1]) for feature in found.features[:2]] == [(0, None)] * 2


def test_a_model_without_dense_features(tmp_path):
    """Its graph has no input `dense`, so its requests have none."""
    spec = FeatureSpec((("y", "label"), ("c", "categorical"), ("d", "categorical")), separator=",")
    records = data(tmp_path, [(row[0], *row[3:]) for row in PLAIN_ROWS], spec)
    ids, keys = records.numpy("train")[1], raw(PLAIN_ROWS)[1]
    logs = [predict(categorical=ids), predict("raw", categorical=keys)]
    logs.append(examples("classify_log", [{"categorical": row.tolist()} for row in ids]))
    found = drift(records, write(tmp_path / "log", logs))
    assert (found.rows, found.skipped) == ((12, 36), (0, ""))
    assert [(feature.psi, feature.new) for feature in found.features] == [(0, 0)] * 2


def test_examples_of_keys(tmp_path, bags):
    """Of a model with bags and a vocabulary an example has lists of keys; what a row lacks is the missing key, or weight 1."""
    rows = [
        {"dense": [1.0, 2.0], "c": [b"p", b"q", b"p"], "d": [b"x", b"y"], "d_weights": [0.5]},
        {"dense": [NAN, 4.0], "c": [], "d": [b"y"], "d_weights": [2.0]},
        {"dense": [5.0, 6.0], "c": [b"q"], "d": [b"x", b"x"], "d_weights": [1.0, 3.0]},
    ]
    found = drift(bags, write(tmp_path / "log", [examples("regress_log", rows * 3)]))
    assert [feature.psi for feature in found.features] == [0] * 4
    assert found.features[0].missing == (1 / 3, 1 / 3)
    del rows[1]["c"]
    assert drift(bags, write(tmp_path / "log", [examples("classify_log", rows * 3)])).features[2].psi == 0


def test_a_context_is_merged_in(tmp_path, plain):
    found = drift(plain, write(tmp_path / "log", [forms(plain, PLAIN_ROWS)["context"][0][0]]))
    c = found.features[2]
    assert (found.rows[1], c.keys, c.moved[0].name, c.moved[0].share) == (12, (3, 1), "key q", (0.25, 0))


def test_new_keys_and_ids_out_of_vocabulary(tmp_path, plain):
    dense, keys = raw(PLAIN_ROWS)
    keys[0] = [b"never seen", b"also"]
    found = drift(plain, write(tmp_path / "raw", [predict("raw", dense=dense, categorical=keys)]))
    assert [feature.new for feature in found.features[2:]] == [1 / 12, 1 / 12]
    ids = plain.numpy("train")[1].astype(np.int64)
    ids[0], ids[1] = (3, 2**40), (-1, -(2**40))
    found = drift(plain, write(tmp_path / "ids", [predict(dense=log_dense(dense), categorical=ids)]))
    assert [feature.unknown for feature in found.features[2:]] == [2 / 12, 2 / 12]


def test_our_warm_up_file_is_such_a_log(tmp_path, plain):
    config = DLRMConfig(plain.sizes, dense_dim=2, embedding_dim=4, bottom_mlp=(4,), top_mlp=(1,))
    from tensorflow_serving.apis import prediction_log_pb2

    _write_warmup(str(tmp_path / "warmup"), prediction_log_pb2, config, "dlrm", (1, 4))
    assert drift(plain, tmp_path / "warmup").rows[1] == 5


def test_a_folder_of_files(tmp_path, plain):
    dense, keys = raw(PLAIN_ROWS)
    folder = tmp_path / "log"
    folder.mkdir()
    for name, rows in (("2.tfrecord", 4), ("1.tfrecord.gz", 12), (".3.tfrecord.part", 12), (".4.tfrecord", 12)):
        log = predict("raw", dense=dense[:rows], categorical=keys[:rows])
        write(folder / name, [log], "GZIP" if name.endswith("gz") else None)
    assert drift(plain, folder).rows[1] == 16
    write(folder / "5.tfrecord", [PredictionLog(), b"\xff\xff"])
    with pytest.raises(DataError, match="5.tfrecord: record 2 is no PredictionLog"):
        drift(plain, folder)
    (folder / "manifest.json").write_text("{}")  # a data folder, whatever else it holds
    with pytest.raises(DataError, match="manifest.json"):
        drift(plain, folder)


def test_requests_of_other_signatures_or_inputs_are_passed_over(tmp_path, plain):
    dense, keys = raw(PLAIN_ROWS)
    good = predict("raw", dense=dense, categorical=keys)
    session = PredictionLog()
    session.session_run_log.request.feed.add(name="x")
    bad = [
        (predict("update", rows=[1]), "wanted the signature serving_default or raw. Received 'update'"),
        (session, "wanted one of the logs predict_log, classify_log, regress_log, multi_inference_log. Received session_run_log"),
        (b"", "wanted one of the logs .* Received None"),
        (predict("raw", dense=dense, categorical=keys[1:]), "wanted inputs of the shapes"),
        (predict("raw", dense=dense), "wanted inputs of the shapes"),
        (predict("raw", dense=3.0, categorical=b"x"), "wanted inputs of the shapes"),
        (predict("raw", dense=np.ones((12, 2), np.int32), categorical=keys), "wanted floats in dense. Received int32"),
        (predict(dense=dense, categorical=[[0, 0]] * 12), "wanted finite numbers in dense"),
        (predict(dense=np.zeros((12, 2), np.float32), categorical=np.zeros((12, 2))), "categorical must be integer ids"),
        (predict(dense=np.zeros((12, 2), np.float32), categorical=keys), "categorical must be integer ids"),
        (examples("classify_log", [{"dense": [1.0]}, {"dense": [1.0, 2.0]}]), "wanted as many values of dense in every example"),
        (examples("classify_log", [{"dense": [1.0, 2.0], "categorical": [1]}]), "wanted inputs of the shapes"),
        (examples("regress_log", [{}]), "wanted inputs of the shapes"),
    ]
    found = drift(plain, write(tmp_path / "log", [log for log, _ in bad] + [good]))
    assert (found.rows[1], found.skipped[0]) == (12, len(bad))
    assert found.skipped[1].startswith("record 1: ")
    for log, message in bad:
        with pytest.raises(DataError, match=f"Received none; 1 requests skipped: record 1: .*{message}"):
            drift(plain, write(tmp_path / "one", [log]))


def test_files_that_are_no_request_logs(tmp_path, plain):
    dense, keys = raw(PLAIN_ROWS)
    content = write(tmp_path / "good", [predict("raw", dense=dense, categorical=keys)] * 2).read_bytes()
    huge = struct.pack("<QI", 1 << 40, 0)
    path = tmp_path / "log"
    for damaged, message in (
        (b"text, not a log\n" * 9, "wanted a record 1 of up to 268,435,456 bytes. Received one of"),
        (content + huge, "wanted a record 3 of up to 268,435,456 bytes. Received one of 1,099,511,627,776 bytes"),
        (content[:-1], "record 2 is cut off"),
        (content + b"\1", "wanted a record 3 .* Received a cut one"),
        (content[:20] + b"\xff" + content[21:], "damaged TFRecord file"),
        (gzip.compress(content)[:-9], "damaged gzip file"),
        (b"\x1f\x8b" + bytes(50), "damaged gzip file"),
        (gzip.compress(content + huge), "wanted a record 3"),
        (b"", "wanted rows to compare. Received none"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=message):
            drift(plain, path)
    with pytest.raises(DataError, match="record 2 is no PredictionLog"):
        drift(plain, write(path, [PredictionLog(), b"\xff\xff"]))
    with pytest.raises(UsageError, match="b_split must be all with a request log"):
        drift(plain, path, b_split="test")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_hostile_requests_are_taken_or_passed_over(side, data):
    """Bytes of good requests, damaged at random: rows that can be counted, or one clear line."""
    dense, keys = raw(PLAIN_ROWS)
    whole = [{"dense": row.tolist(), "categorical": [0, 1]} for row in dense]
    logs = predict("raw", dense=dense, categorical=keys), predict(dense=dense), examples("classify_log", whole)
    content = bytearray(data.draw(st.sampled_from(logs)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        rows = side._rows(PredictionLog.FromString(bytes(content)))
    except DecodeError:
        return
    except (DataError, RequestError) as e:
        assert str(e)
        return
    assert rows.dense.shape == (len(rows.label), 2)
    assert rows.ids.shape == (len(rows.label), 2)
    assert (rows.dense.dtype, rows.ids.dtype) == (np.float32, np.int32)
