"""Predictor: what it loads, what it checks, what it says."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli.main import main
from dlrm_tf.data.spec import CRITEO
from dlrm_tf.errors import DataError, DLRMError, UsageError
from dlrm_tf.serve import ModelServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory, golden_dir):
    """The golden log prepared, and a random model of its vocabulary."""
    folder = tmp_path_factory.mktemp("predictor")
    records = dlrm_tf.prepare(golden_dir / "criteo" / "train.txt", folder / "data")
    config = dlrm_tf.DLRMConfig(records.sizes, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1))
    model = dlrm_tf.DLRM(config, seed=2)
    model.vocabulary_fingerprint = records.vocabulary().fingerprint
    model.save_weights(folder / "m.weights.h5")
    dlrm_tf.export_savedmodel(folder / "m.weights.h5", folder, vocabulary=folder / "data" / "vocabulary.npz", warmup_batches=(1,))
    dlrm_tf.export_tflite(folder / "m.weights.h5", folder / "m.tflite", data=folder / "data", max_size=60_000, quiet=True)
    return folder


@pytest.fixture(scope="module")
def lines(golden_dir):
    lines = (golden_dir / "criteo" / "train.txt").read_text().splitlines()
    return [line for line in lines if line.count("\t") == 39]


def test_a_server_the_command_line_and_the_weights_give_the_same(folder, lines, tmp_path):
    vocabulary = str(folder / "data" / "vocabulary.npz")
    wanted = dlrm_tf.Predictor(folder / "m.weights.h5", vocabulary).predict(lines)
    assert len(wanted) == 698 and np.ptp(wanted) > 0.01
    with ModelServer(model_name="clicks", model_base_path=str(folder / "dlrm"), rest_api_port=0) as server:
        for address in (server.target, server.rest_target):
            with dlrm_tf.Predictor(address, vocabulary, model_name="clicks", timeout=30, batch_size=100) as predictor:
                np.testing.assert_allclose(predictor.predict(lines), wanted, atol=1e-6)
    (tmp_path / "log.tsv").write_text("\n".join(lines))
    command = ["score", str(tmp_path / "log.tsv"), "--target", str(folder / "m.weights.h5"), "--vocabulary", vocabulary]
    assert main([*command, "-o", str(tmp_path / "p.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), wanted)


@pytest.mark.parametrize("target", ["m.weights.h5", "dlrm", "m.tflite"])
def test_the_vocabulary_of_another_model_is_refused(folder, lines, target):
    right = dlrm_tf.Vocabulary.load(folder / "data" / "vocabulary.npz")
    assert len(dlrm_tf.Predictor(folder / target, right).predict(lines[:3])) == 3
    keys = {name: right.keys(name) for name in right.names}
    other = dlrm_tf.Vocabulary.from_keys({**keys, "C7": keys["C7"][::-1]})
    with pytest.raises(
        DataError, match=rf"the vocabulary: wanted the vocabulary .*{target} was trained with.*its ids mean other"
    ):
        dlrm_tf.Predictor(folder / target, other)
    other = dlrm_tf.Vocabulary.from_keys({**keys, "C7": keys["C7"][1:]})
    with pytest.raises(DataError, match=f"has {right.sizes[6]} ids for feature C7, but the vocabulary has {right.sizes[6] - 1}"):
        dlrm_tf.Predictor(folder / target, other)


def test_other_columns_are_given_by_a_spec(folder, lines, tmp_path):
    vocabulary = dlrm_tf.Vocabulary.from_keys({"shop": ["x"]})
    with pytest.raises(DataError, match="wanted a vocabulary of the features C1, .* has shop; .* feature spec"):
        dlrm_tf.Predictor(folder / "m.weights.h5", vocabulary)
    columns = [*CRITEO.to_dict()["columns"], ["more", "int"]]
    (tmp_path / "spec.json").write_text(json.dumps({"columns": columns}))
    with pytest.raises(
        DataError, match="spec: wanted the columns of .*m.weights.h5. .* is for 13 dense features, but the data has 14"
    ):
        dlrm_tf.Predictor(folder / "m.weights.h5", folder / "data" / "vocabulary.npz", spec=tmp_path / "spec.json")


def test_rows_and_arguments_that_are_not_as_they_should_be(folder, lines):
    vocabulary = folder / "data" / "vocabulary.npz"
    predictor = dlrm_tf.Predictor(folder / "m.weights.h5", vocabulary, batch_size=2)
    assert predictor.predict([]).shape == (0,)
    with pytest.raises(DataError, match="rows: row 3: wanted 40 fields. Received 2"):
        predictor.predict([*lines[:3], "a\tb"])
    with pytest.raises(DataError, match="rows: wanted a column 'I1'"):
        predictor.predict({})
    with pytest.raises(DataError, match="wanted a list of lines, a dict of columns or a DataFrame. Received str"):
        predictor.predict(lines[0])
    with pytest.raises(UsageError, match="batch_size must be at least 1. Received 0"):
        dlrm_tf.Predictor(folder / "m.weights.h5", vocabulary, batch_size=0)
    with pytest.raises(UsageError, match="target must be host:port"):
        dlrm_tf.Predictor("nothing", vocabulary)
    with pytest.raises(DLRMError, match="none.weights.h5"):
        dlrm_tf.Predictor(folder / "none.weights.h5", vocabulary)


@pytest.mark.parametrize("text", ["{", "[" * 20_000])
def test_a_damaged_metadata_file_is_refused(folder, tmp_path, text):
    shutil.copytree(folder / "dlrm" / "1", tmp_path / "1")
    (tmp_path / "1" / "assets.extra" / "dlrm_tf.json").write_text(text)
    with pytest.raises(DataError, match="dlrm_tf.json: damaged metadata"):
        dlrm_tf.Predictor(tmp_path / "1", folder / "data" / "vocabulary.npz")


def test_the_name_loads_no_tensorflow():
    code = "import sys, dlrm_tf; dlrm_tf.Predictor; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
