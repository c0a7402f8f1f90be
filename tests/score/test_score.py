"""`dlrm-tf score`: the same rows, the same probabilities, whatever scores them."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dlrm_tf.cli.main import main
from dlrm_tf.data.prepare import prepare
from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError, ServingError, UsageError, pip_command
from dlrm_tf.probability import sigmoid
from dlrm_tf.score import open_target
from dlrm_tf.score.rows import read_rows
from dlrm_tf.serve import ModelServer

ROWS = 5


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    return rng.normal(size=(ROWS, 13)).astype(np.float32), rng.integers(0, 2, (ROWS, 26)).astype(np.int32)


@pytest.fixture
def rows(arrays, tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, dense=arrays[0], categorical=arrays[1])
    return str(path)


def expected(dense, categorical, bias):
    return sigmoid(dense.sum(1) + categorical.sum(1) + bias)


def test_every_target_gives_the_same_probabilities(save_linear, rows, arrays, tmp_path, capsys):
    base = save_linear(1, bias=-13)
    with ModelServer(model_name="dlrm", model_base_path=base, rest_api_port=0) as server:
        for i, target in enumerate((server.target, server.rest_target, base, base + "/1")):
            output = str(tmp_path / f"{i}.npy")
            assert main(["score", rows, "--target", target, "--batch_size", "2", "-o", output]) == 0
            np.testing.assert_allclose(np.load(output), expected(*arrays, -13), rtol=1e-5)
        assert main(["score", rows, "--target", server.target]) == 0
        lines = capsys.readouterr().out.splitlines()
        csv = tmp_path / "out.csv"
        assert main(["score", rows, "--target", base, "-o", str(csv)]) == 0
    assert csv.read_text().splitlines() == ["probability", *lines] and len(lines) == ROWS
    np.testing.assert_array_equal(np.array(lines, np.float32), np.load(tmp_path / "0.npy"))


def test_version_of_a_server_or_a_folder(save_linear, rows, arrays, capsys):
    base = save_linear(1, bias=-13)
    save_linear(2, bias=-14)
    for version, bias in ((1, -13), (2, -14)):
        assert main(["score", rows, "--target", base, "--model_version", str(version)]) == 0
        np.testing.assert_allclose(np.array(capsys.readouterr().out.split(), float), expected(*arrays, bias), rtol=1e-5)
    with pytest.raises(ServingError, match="wanted version 7. Received versions 1, 2"):
        open_target(base, version=7)


def tsv_line(label, number, key):
    return "\t".join([label, *[number] * 13, *[key] * 26])


@pytest.mark.parametrize("text", ["clicked,price,session,shop\n0,2.5,s,x\n1,,t,new\n", "price,session,shop\n2.5,s,x\n,t,new\n"])
def test_a_log_of_other_columns(tmp_path, text):
    columns = [["clicked", "label"], ["price", "float"], ["session", "skip"], ["shop", "categorical"]]
    (tmp_path / "spec.json").write_text(json.dumps({"columns": columns, "separator": ",", "header": True}))
    vocabulary, spec = str(tmp_path / "vocabulary.npz"), str(tmp_path / "spec.json")
    Vocabulary.from_keys({"shop": ["x", "y"]}).save(vocabulary)
    (tmp_path / "log.csv").write_text(text)
    ((dense, categorical),) = read_rows(str(tmp_path / "log.csv"), batch_size=10, vocabulary=vocabulary, spec=spec)
    np.testing.assert_allclose(dense, [[np.log(3.5)], [0]], rtol=1e-6)
    assert categorical.tolist() == [[0], [2]]
    with pytest.raises(DataError, match="wanted a vocabulary of the features C1, .* has shop; .*--spec"):
        list(read_rows(str(tmp_path / "log.csv"), batch_size=10, vocabulary=vocabulary))
    (tmp_path / "log.csv").write_text(text.replace("2.5", "cheap"))
    column = 2 if text.startswith("clicked") else 1
    with pytest.raises(DataError, match=rf"log.csv:2: column {column} \(price\): wanted a finite number. Received 'cheap'"):
        list(read_rows(str(tmp_path / "log.csv"), batch_size=10, vocabulary=vocabulary, spec=spec))


def test_bad_line_stops_and_is_named(tmp_path):
    vocabulary = str(tmp_path / "vocabulary.npz")
    Vocabulary.from_keys({f"C{i}": ["a"] for i in range(1, 27)}).save(vocabulary)
    path = tmp_path / "rows.tsv"
    path.write_text(tsv_line("1", "3", "a") + "\n" + tsv_line("1", "x", "a") + "\n")
    with pytest.raises(DataError, match=r"rows.tsv:2: column 2 \(I1\): wanted an integer. Received 'x'"):
        list(read_rows(str(path), batch_size=10, vocabulary=vocabulary))
    with pytest.raises(DataError, match="--vocabulary"):
        read_rows(str(path), batch_size=10)


def test_records_and_their_tsv_give_the_same_rows(tmp_path):
    tsv = tmp_path / "rows.tsv"
    tsv.write_text("".join(tsv_line("1", str(row), key) + "\n" for row, key in enumerate(("68fd1e64", "", "a", "68fd1e64", "b"))))
    prepare(str(tsv), str(tmp_path / "data"), test_fraction=0.4)
    vocabulary = str(tmp_path / "data" / "vocabulary.npz")
    (from_tsv,) = read_rows(str(tsv), batch_size=10, vocabulary=vocabulary)
    assert [len(dense) for dense, _ in read_rows(str(tsv), batch_size=2, vocabulary=vocabulary)] == [2, 2, 1]
    train = list(read_rows(str(tmp_path / "data"), batch_size=2, split="train"))
    test = list(read_rows(str(tmp_path / "data"), batch_size=2))
    assert [len(dense) for dense, _ in train + test] == [2, 1, 2]
    for column in (0, 1):
        np.testing.assert_array_equal(np.concatenate([batch[column] for batch in train + test]), from_tsv[column])
    np.testing.assert_allclose(from_tsv[0][:, 3], np.log1p(np.arange(5)), rtol=1e-6)
    prepare(str(tsv), str(tmp_path / "all"), test_fraction=0)
    with pytest.raises(DataError, match="the split test has no rows"):
        list(read_rows(str(tmp_path / "all"), batch_size=2))


def test_a_model_without_dense_features_needs_no_array_of_them(tmp_path):
    np.savez(tmp_path / "rows.npz", categorical=np.arange(6).reshape(3, 2))
    first, last = read_rows(str(tmp_path / "rows.npz"), batch_size=2)
    assert [array.shape for array in (*first, *last)] == [(2, 0), (2, 2), (1, 0), (1, 2)]


@pytest.mark.parametrize(
    "content, message",
    [
        ({"dense": np.zeros((2, 13))}, "wanted arrays dense, if any, and categorical. Received dense"),
        ({"dense": np.zeros((2, 13)), "categorical": np.zeros((3, 26), int)}, "with the same rows"),
        ({"dense": np.zeros((2, 13)), "categorical": np.zeros((2, 26))}, "categorical as int32. Received float64 and float64"),
        ({"dense": np.zeros((2, 13)), "categorical": np.full((2, 26), 2**40)}, "do not fit int32"),
        ({"dense": np.array([{}]), "categorical": np.zeros((1, 26), int)}, "not a numpy file of plain numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, content, message):
    np.savez(tmp_path / "rows.npz", **content)
    with pytest.raises(DataError, match=message):
        list(read_rows(str(tmp_path / "rows.npz"), batch_size=2))


def test_npy_pair(tmp_path, arrays):
    np.save(tmp_path / "dense.npy", arrays[0])
    np.save(tmp_path / "ids.npy", arrays[1])
    ((dense, categorical),) = read_rows(str(tmp_path / "dense.npy"), batch_size=10, categorical=str(tmp_path / "ids.npy"))
    np.testing.assert_array_equal(dense, arrays[0])
    np.testing.assert_array_equal(categorical, arrays[1])
    with pytest.raises(DataError, match="--categorical"):
        read_rows(str(tmp_path / "dense.npy"), batch_size=10)


def test_wrong_target_and_unreachable_server_are_one_line_and_leave_no_output(rows, tmp_path, capsys):
    with pytest.raises(UsageError, match="must be host:port"):
        open_target("nonsense")
    assert main(["score", rows, "--target", "127.0.0.1:1", "--timeout", "120", "-o", str(tmp_path / "out.csv")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dlrm-tf: 127.0.0.1:1, model dlrm: UNAVAILABLE")
    assert main(["score", rows, "--target", "127.0.0.1:1", "-o", str(tmp_path / "x.txt")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npz"]


@pytest.mark.parametrize("unused", [{"version": 2}, {"label": "stable"}])
def test_a_file_has_no_versions(tmp_path, unused):
    (tmp_path / "m.weights.h5").touch()
    with pytest.raises(UsageError, match=f"Received {next(iter(unused))} .* with another target"):
        open_target(tmp_path / "m.weights.h5", **unused)


def test_serve_tells_wrong_usage_in_one_line(capsys, tmp_path):
    assert main(["serve", "--model_name", "m", "--model_base_path", "relative"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["serve", "--model_name", "m"]) == 2
    (tmp_path / "1").mkdir()
    assert main(["serve", "--model_name", "m", "--model_base_path", str(tmp_path), "--port", "0"]) == 1
    assert "Could not find SavedModel .pb" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["serve", "--help"], ["score", "ROWS", "--target", "127.0.0.1:1"]])
def test_without_the_extra_both_say_what_to_install(rows, arguments):
    arguments = [rows if argument == "ROWS" else argument for argument in arguments]
    program = (
        f"import sys; sys.modules['tensorflow_serving'] = None\nfrom dlrm_tf.cli.main import main; sys.exit(main({arguments}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"dlrm-tf: tensorflow_serving is not installed: {pip_command('serving')}"
