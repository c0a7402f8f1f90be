"""Dropout, label smoothing, clipping and L2 of a training step, by hand and in NumPy; none of it reaches inference."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import make_optimizer
from dlrm_tf.model.regularization import Regularization

tf = tensorflow()
CONFIG = dlrm_tf.DLRMConfig((5, 4, 3), dense_dim=2, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 8, 1))
# Ids come more than once, and one is out of vocabulary.
IDS = np.array([[0, 1, 2], [0, 1, 3], [4, 1, 2], [0, 0, 0]], np.int32)
ROWS = {"dense": np.array([[0.5, 1.0], [2.0, 0.0], [0.1, 0.3], [1.0, 1.0]], np.float32), "categorical": IDS}
LABEL = np.array([[1], [0], [0], [1]], np.float32)


def model_of(optimizer="sgd", rate=0.5, l2=0.0, **regularization):
    model = dlrm_tf.DLRM(CONFIG, seed=3)
    model.compile(make_optimizer(optimizer, rate, l2=l2))
    model.regularization = Regularization(**regularization)
    return model


def trained(model):
    """The variables' changes in one step."""
    before = [v.numpy() for v in model.trainable_variables]
    model.train_on_batch(ROWS, LABEL)
    return [v.numpy() - b for v, b in zip(model.trainable_variables, before)]


def test_dropout_leaves_out_its_share_and_follows_from_seed_step_and_layer():
    ones = tf.ones([200, 500])
    rules = Regularization(dropout=0.3, seed=1)
    drawn = rules.drop(0, ones, tf.constant(7)).numpy()
    assert set(np.unique(drawn)) == {0.0, np.float32(1 / 0.7)}
    assert (drawn == 0).mean() == pytest.approx(0.3, abs=0.006)  # four standard deviations of 100,000 draws
    np.testing.assert_array_equal(drawn, rules.drop(0, ones, tf.constant(7, tf.int64)).numpy())
    others = [(rules, 0, 8), (rules, 1, 7), (Regularization(dropout=0.3, seed=2), 0, 7)]
    assert all((one.drop(layer, ones, tf.constant(step)).numpy() != drawn).any() for one, layer, step in others)
    assert Regularization().drop(0, ones, tf.constant(7)) is ones


def test_dropout_is_of_the_top_mlps_hidden_units_in_training_only():
    model = model_of(dropout=0.5, seed=4)
    plain = dlrm_tf.DLRM(CONFIG, seed=3)
    np.testing.assert_array_equal(model(ROWS), plain(ROWS))
    read = {}
    for training in (False, True):
        model.head(ROWS["dense"], model.embedding(IDS), training=training, observe=lambda *seen: read.update({seen[:2]: seen[2]}))
        zeros = {layer: float((values.numpy() == 0).mean()) for layer, values in read.items()}
        if not training:
            before = dict(zeros)
    # What the second and third top layer read is dropped, nothing else is: not the input, not the bottom MLP.
    for layer in (("bottom_mlp", 0), ("bottom_mlp", 1), ("top_mlp", 0)):
        assert zeros[layer] == before[layer]
    assert zeros["top_mlp", 1] > before["top_mlp", 1] and zeros["top_mlp", 2] > before["top_mlp", 2]
    assert model.get_config() == plain.get_config()


def test_smoothed_labels_by_hand():
    model = model_of(label_smoothing=0.2)
    logits = model(ROWS).numpy().astype(np.float64)
    label = np.where(LABEL > 0.5, 0.9, 0.1)
    wanted = (np.logaddexp(0, logits) - label * logits).mean()
    assert float(model.compute_loss((ROWS, LABEL), training=True)) == pytest.approx(wanted, abs=1e-6)
    plain = (np.logaddexp(0, logits) - LABEL * logits).mean()
    assert float(model.compute_loss((ROWS, LABEL))) == pytest.approx(plain, abs=1e-6)  # what is measured is not smoothed


@pytest.mark.parametrize("deduplicate", [True, False])
def test_clipping_scales_the_whole_gradient_to_its_norm(deduplicate):
    """With SGD a step is the gradient: its norm is that of dense arrays, whatever form the table's gradient has."""
    free, clipped, loose = (model_of(clip_norm=norm) for norm in (0.0, 0.01, 100.0))
    for model in (free, clipped, loose):
        model.embedding.deduplicate = deduplicate
    steps, small, large = trained(free), trained(clipped), trained(loose)
    norm = np.sqrt(sum((step.astype(np.float64) ** 2).sum() for step in steps)) / 0.5
    assert norm > 0.01
    for step, scaled, same in zip(steps, small, large):
        np.testing.assert_allclose(scaled, step * 0.01 / norm, rtol=0, atol=1e-7)
        np.testing.assert_allclose(same, step, rtol=0, atol=1e-7)


def test_clipping_never_makes_the_tables_gradient_dense():
    model = model_of(clip_norm=0.01)
    with tf.GradientTape() as tape:
        loss = model.compute_loss((ROWS, LABEL), training=True)
    gradients = model.regularization.clip(tape.gradient(loss, model.trainable_variables))
    (sparse,) = (g for g in gradients if isinstance(g, tf.IndexedSlices))
    assert len(sparse.indices) == len(set(sparse.indices.numpy())) == 7  # distinct (feature, id) pairs of IDS


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad", "lazy_adam"])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_l2_adds_its_share_of_each_used_row_once(optimizer, deduplicate):
    """Against a step whose gradient is given: the loss's, plus l2 * row for the rows of the batch."""
    model, by_hand = model_of(optimizer, 0.1, l2=0.25), model_of(optimizer, 0.1)
    for one in (model, by_hand):
        one.embedding.deduplicate = deduplicate
    table = by_hand.embedding.table
    before = table.numpy()
    with tf.GradientTape() as tape:
        loss = by_hand.compute_loss((ROWS, LABEL), training=True)
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    used = np.unique(IDS + np.array(CONFIG.block_offsets))
    slices = tf.IndexedSlices(tf.constant(gradient[used] + np.float32(0.25) * before[used]), tf.constant(used), table.shape)
    by_hand.optimizer.apply_gradients([(slices, table)])
    change = trained(model)[[v is model.embedding.table for v in model.trainable_variables].index(True)]
    np.testing.assert_allclose(change, table.numpy() - before, rtol=0, atol=2e-6)
    unused = np.setdiff1d(np.arange(len(before)), used)
    assert len(used) == 7 and not change[unused].any()


def test_l2_and_its_optimizer_travel_to_a_grown_model():
    model = model_of("adagrad", 0.1, l2=0.25)
    trained(model)
    assert model.grow((6, 4, 3)).optimizer.l2 == 0.25
    with pytest.raises(ValueError, match="l2 must be a number of at least 0. Received -1"):
        make_optimizer("sgd", l2=-1)
