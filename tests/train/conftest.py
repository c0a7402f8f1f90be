"""Small prepared data, made once."""

import pytest

import dlrm_tf


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Records of 3,000 generated lines: 2,572 rows to train on, 428 to test on."""
    folder = tmp_path_factory.mktemp("prepared")
    dlrm_tf.synth(str(folder / "train.txt"), 3000, seed=5, cardinalities=[50] * 26, quiet=True)
    dlrm_tf.prepare(str(folder / "train.txt"), str(folder / "data"), quiet=True)
    from dlrm_tf.data.records import Records

    return Records.open(str(folder / "data"))


@pytest.fixture(scope="session")
def small_config(prepared):
    """A small architecture for `prepared`."""
    return dlrm_tf.DLRMConfig(prepared.sizes, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1))
