"""Every public name of the package is there, and an unknown one is an AttributeError."""

import pytest

import dlrm_tf


@pytest.mark.parametrize("name", dlrm_tf.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    value = getattr(dlrm_tf, name)
    assert name in dir(dlrm_tf)
    assert name == "__version__" or value.__doc__


def test_the_room_of_0_1_0_that_was_renamed():
    with pytest.warns(DeprecationWarning, match="dlrm_tf.mindspore is dlrm_tf.checkpoints now"):
        assert dlrm_tf.mindspore is dlrm_tf.checkpoints


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dlrm_tf.nonsense  # noqa: B018
