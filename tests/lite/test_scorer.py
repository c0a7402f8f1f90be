"""Device-side scoring: batches, types of ids, clear errors, no TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.errors import DataError, DLRMError
from dlrm_tf.lite import Scorer
from dlrm_tf.lite.metadata import METADATA, read_entry, read_metadata

CONFIG = dlrm_tf.DLRMConfig.preset("tiny")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorer")
    dlrm_tf.DLRM(CONFIG, seed=1).save_weights(folder / "m.weights.h5")
    dlrm_tf.export_tflite(folder / "m.weights.h5", folder / "m.tflite", quiet=True)
    generator = np.random.default_rng(0)
    dense = generator.random((2500, 13), np.float32)
    categorical = np.stack([generator.integers(0, s, 2500) for s in CONFIG.categorical_feature_sizes], 1).astype(np.int32)
    return folder / "m.tflite", dense, categorical


def test_any_batch_gives_the_same_scores(exported):
    path, dense, categorical = exported
    scorer = Scorer(path)
    whole = scorer.score(dense, categorical)
    assert whole.shape == (2500,) and whole.dtype == np.float32
    assert len(np.unique(whole)) > 1000
    parts = [scorer.score(dense[a:b], categorical[a:b]) for a, b in ((0, 1), (1, 2), (2, 66), (66, 2500), (2500, 2500))]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    np.testing.assert_allclose(Scorer(path, num_threads=2).score(dense, categorical), whole, atol=1e-6)


def test_wide_and_narrow_ids(exported):
    path, dense, categorical = exported
    scorer = Scorer(path)
    wanted = scorer.score(dense[:4], categorical[:4])
    for kind in (np.int64, np.uint8, np.int16):
        np.testing.assert_array_equal(scorer.score(dense[:4].astype(np.float64), categorical[:4].astype(kind)), wanted)
    far, oov = categorical[:1].astype(np.int64), categorical[:1].copy()
    far[0, 2], oov[0, 2] = 2**32 + 3, CONFIG.categorical_feature_sizes[2]
    np.testing.assert_array_equal(scorer.score(dense[:1], far), scorer.score(dense[:1], oov))


def test_a_row_of_another_layout_in_memory(exported):
    path, dense, categorical = exported
    scorer = Scorer(path)
    np.testing.assert_array_equal(
        scorer.score(np.asfortranarray(dense[:50]), np.asfortranarray(categorical[:50])),
        scorer.score(dense[:50], categorical[:50]),
    )


def test_wrong_arrays_are_named(exported):
    path, dense, categorical = exported
    scorer = Scorer(path)
    with pytest.raises(DataError, match=r"dense must be \[batch_size, 13\]. Received \[2, 12\]"):
        scorer.score(dense[:2, 1:], categorical[:2])
    with pytest.raises(DataError, match=r"categorical must be \[batch_size, 26\]. Received \[26\]"):
        scorer.score(dense[:1], categorical[0])
    with pytest.raises(DataError, match="dense has 2 rows, categorical 3"):
        scorer.score(dense[:2], categorical[:3])
    with pytest.raises(DataError, match="integer ids. Received float32"):
        scorer.score(dense[:2], categorical[:2].astype(np.float32))


def test_files_that_are_no_scorer(exported, tmp_path):
    path, _, _ = exported
    with pytest.raises(FileNotFoundError):
        Scorer(tmp_path / "none.tflite")
    (tmp_path / "text.tflite").write_text("hello, this is text")
    with pytest.raises(DLRMError, match="wanted a TFLite file"):
        Scorer(tmp_path / "text.tflite")
    (tmp_path / "empty.tflite").write_bytes(b"")
    with pytest.raises(DLRMError, match="wanted a TFLite file"):
        Scorer(tmp_path / "empty.tflite")
    import tensorflow as tf

    other = tf.lite.TFLiteConverter.from_concrete_functions(
        [tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec([3]))]
    )
    (tmp_path / "other.tflite").write_bytes(other.convert())
    with pytest.raises(DLRMError, match="not one that dlrm_tf exported"):
        Scorer(tmp_path / "other.tflite")


@pytest.mark.parametrize("text", [b"[1]", b"3", b"[" * 20_000])
def test_metadata_that_is_no_json_object(exported, tmp_path, text):
    content, metadata = exported[0].read_bytes(), read_entry(str(exported[0]), METADATA)
    (tmp_path / "m.tflite").write_bytes(content.replace(metadata, text.ljust(len(metadata))[: len(metadata)]))
    with pytest.raises(DLRMError, match="not one that dlrm_tf exported"):
        Scorer(tmp_path / "m.tflite")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_cut_file_is_an_error_not_a_crash(exported, tmp_path, share):
    data = exported[0].read_bytes()
    (tmp_path / "cut.tflite").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DLRMError):
        Scorer(tmp_path / "cut.tflite")


def test_needs_numpy_and_litert_only(exported):
    """A process in which TensorFlow, Keras and h5py can't be imported scores all the same."""
    path, _, _ = exported
    code = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tensorflow', 'keras', 'tf_keras', 'h5py', 'polars', 'absl'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import numpy as np\n"
        "from dlrm_tf.lite import Scorer\n"
        "print(Scorer(sys.argv[1]).score(np.zeros((3, 13)), np.zeros((3, 26), int)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(3,)"


def test_damaged_bytes_are_an_error_or_harmless(exported, tmp_path):
    """Bytes changed where the file's tables and offsets are: the reader never fails in another way."""
    data = exported[0].read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(data)
        for at in generator.integers(0, 1200, 4):
            changed[at] = generator.choice([0, 127, 128, 255])
        (tmp_path / "d.tflite").write_bytes(changed)
        try:
            assert isinstance(read_metadata(tmp_path / "d.tflite"), dict)
        except DLRMError:
            refused += 1
    assert refused > 20
