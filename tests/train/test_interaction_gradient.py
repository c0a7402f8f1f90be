"""The interaction as it is trained: the value it has in inference, and TFRS's gradient."""

import numpy as np
import pytest

from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.interaction import DotInteraction

tf = tensorflow()
tfrs = recommenders()


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("vectors", [2, 5, 27])
def test_training_form_equals_inference_form_and_tfrs(vectors, self_interaction):
    stack = tf.constant(np.random.default_rng(vectors).normal(size=(3, vectors, 4)), tf.float32)
    ours, theirs = (
        DotInteraction(vectors, self_interaction),
        tfrs.layers.feature_interaction.DotInteraction(self_interaction=self_interaction),
    )
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(stack)
        trained = ours(stack, training=True)
        reference = theirs([stack[:, i] for i in range(vectors)])
        weights = tf.reshape(tf.range(tf.size(trained), dtype=tf.float32), tf.shape(trained))
        one, other = tf.reduce_sum(weights * trained), tf.reduce_sum(weights * reference)
    np.testing.assert_array_equal(trained, ours(stack, training=False))
    np.testing.assert_allclose(trained, reference, atol=1e-5)
    np.testing.assert_allclose(tape.gradient(one, stack), tape.gradient(other, stack), rtol=1e-5, atol=1e-2)
