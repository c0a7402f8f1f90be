"""Every optimizer against a dense reference in NumPy, with duplicate rows in the batch, and left-alone rows."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model import optimizers
from dlrm_tf.model.optimizers import SGD, LazyAdam, RowwiseAdagrad, TableAndDense, legacy, make_optimizer, sparse_safe
from dlrm_tf.train.schedules import WarmUpThenDecay

tf = tensorflow()
ROWS, WIDTH, RATE = 12, 3, 0.1
# Rows 2 and 7 are used twice and three times in one batch; rows 0, 1 and 11 never.
BATCHES = [[2, 7, 7, 2, 5, 7], [3, 3, 4, 5, 6, 2], [7, 8, 9, 10, 10, 10]]
USED = sorted({row for batch in BATCHES for row in batch})


def gradients(seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(len(batch), WIDTH)) for batch in BATCHES]


def summed(batch, gradient):
    dense = np.zeros((ROWS, WIDTH))
    np.add.at(dense, batch, gradient)
    return dense


def sgd(table, dense, state, step):
    table -= RATE * dense


def adagrad(table, dense, state, step):
    accumulator = state.setdefault("a", np.full((ROWS, WIDTH), 0.1))
    accumulator += dense**2
    table -= RATE * dense / np.sqrt(accumulator)


def rowwise_adagrad(table, dense, state, step):
    accumulator = state.setdefault("a", np.full((ROWS, 1), 0.1))
    accumulator += (dense**2).mean(1, keepdims=True)
    table -= RATE * dense / np.sqrt(accumulator)


def lazy_adam(table, dense, state, step):
    m, v = state.setdefault("m", np.zeros((ROWS, WIDTH))), state.setdefault("v", np.zeros((ROWS, WIDTH)))
    used = np.abs(dense).sum(1) > 0
    m[used] = 0.9 * m[used] + 0.1 * dense[used]
    v[used] = 0.999 * v[used] + 0.001 * dense[used] ** 2
    rate = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    table[used] -= rate * m[used] / (np.sqrt(v[used]) + 1e-7)


REFERENCES = {"sgd": sgd, "adagrad": adagrad, "rowwise_adagrad": rowwise_adagrad, "lazy_adam": lazy_adam}


def table_variable():
    start = np.random.default_rng(9).normal(size=(ROWS, WIDTH)).astype(np.float32)
    return tf.Variable(start, name="embedding/table"), start


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("in_graph", [False, True])
def test_sparse_steps_equal_the_dense_reference(name, in_graph):
    table, start = table_variable()
    optimizer = make_optimizer(name, RATE)
    step = optimizer.apply_gradients

    def apply(values, indices):
        step([(tf.IndexedSlices(values, indices, tf.constant([ROWS, WIDTH])), table)])

    if in_graph:
        apply = tf.function(apply)
    reference, state = start.astype(np.float64), {}
    for number, (batch, gradient) in enumerate(zip(BATCHES, gradients()), 1):
        apply(tf.constant(gradient, tf.float32), tf.constant(batch))
        REFERENCES[name](reference, summed(batch, gradient), state, number)
    np.testing.assert_allclose(table.numpy(), reference, rtol=0, atol=2e-6)
    untouched = [row for row in range(ROWS) if row not in USED]
    assert untouched
    np.testing.assert_array_equal(table.numpy()[untouched], start[untouched])


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_a_dense_gradient_gives_the_same_step(name):
    # Ascend and TPU hand the table's gradient over as a dense tensor.
    (sparse, _), (dense, _) = table_variable(), table_variable()
    one, other = make_optimizer(name, RATE), make_optimizer(name, RATE)
    for batch, gradient in zip(BATCHES, gradients()):
        one.apply_gradients([(tf.IndexedSlices(tf.constant(gradient, tf.float32), tf.constant(batch)), sparse)])
        other.apply_gradients([(tf.constant(summed(batch, gradient), tf.float32), dense)])
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), rtol=0, atol=2e-6)


def test_lazy_adam_is_adam_when_every_row_is_used():
    (lazy, _), (plain, _) = table_variable(), table_variable()
    one, other = LazyAdam(RATE), legacy.Adam(RATE)
    for seed in range(3):
        gradient = tf.constant(np.random.default_rng(seed).normal(size=(ROWS, WIDTH)), tf.float32)
        one.apply_gradients([(tf.IndexedSlices(gradient, tf.range(ROWS)), lazy)])
        other.apply_gradients([(gradient, plain)])
    np.testing.assert_allclose(lazy.numpy(), plain.numpy(), rtol=0, atol=1e-6)


def test_rowwise_adagrad_keeps_one_accumulator_a_row():
    table, _ = table_variable()
    optimizer = RowwiseAdagrad(RATE)
    optimizer.apply_gradients([(tf.IndexedSlices(tf.ones([1, WIDTH]), tf.constant([4])), table)])
    accumulator = optimizer.get_slot(table, "accumulator")
    assert accumulator.shape == [ROWS]
    np.testing.assert_allclose(accumulator.numpy(), np.where(np.arange(ROWS) == 4, 1.1, 0.1), rtol=1e-6)


def test_momentum_is_for_the_dense_part_only():
    table, start = table_variable()
    bias = tf.Variable(np.zeros(2, np.float32), name="dense/bias")
    optimizer = make_optimizer("sgd", RATE, momentum=0.9)
    for _ in range(2):
        optimizer.apply_gradients(
            [(tf.IndexedSlices(tf.ones([1, WIDTH]), tf.constant([4])), table), (tf.constant([1.0, -2.0]), bias)]
        )
    # Keras momentum: v1 = -lr g, v2 = 0.9 v1 - lr g; without momentum two equal steps.
    np.testing.assert_allclose(bias.numpy(), -RATE * np.array([1.0, -2.0]) * (1 + 1.9), rtol=1e-6)
    np.testing.assert_allclose(table.numpy()[4], start[4] - 2 * RATE, rtol=1e-5)
    assert [slot.name.split("/")[-1] for slot in optimizer.variables() if "momentum" in slot.name] == ["momentum:0"]


def test_schedule_warms_up_stays_and_decays():
    schedule = WarmUpThenDecay(2.0, total_steps=10, warmup_steps=4, decay_steps=4, power=2)
    rates = [float(schedule(step)) for step in range(12)]
    np.testing.assert_allclose(rates, [0.5, 1, 1.5, 2, 2, 2, 2, 2 * 0.75**2, 0.5, 2 * 0.25**2, 0, 0], rtol=1e-6)
    table, start = table_variable()
    optimizer = make_optimizer("sgd", schedule)
    for _ in range(2):
        optimizer.apply_gradients([(tf.IndexedSlices(tf.ones([1, WIDTH]), tf.constant([4])), table)])
    np.testing.assert_allclose(table.numpy()[4], start[4] - 1.5, rtol=1e-5)
    again = WarmUpThenDecay(**schedule.get_config())
    assert float(again(8)) == rates[8]
    with pytest.raises(ValueError, match="4 \\+ 7 in 10 steps"):
        WarmUpThenDecay(1.0, 10, warmup_steps=4, decay_steps=7)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "adam"}, "must be one of sgd, adagrad, rowwise_adagrad, lazy_adam. Received 'adam'"),
        ({"name": "adagrad", "momentum": 0.9}, "it goes with 'sgd' for the dense part"),
        ({"name": "sgd", "momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"name": "sgd", "learning_rate": -1}, "learning_rate must be a positive number. Received -1"),
        ({"name": "adagrad", "initial_accumulator": 0}, "initial_accumulator must be positive"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**arguments)


def test_compile_takes_names_and_refuses_to_rewrite_a_large_table(monkeypatch):
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=0)
    model.compile("sgd")
    assert isinstance(model.optimizer, legacy.SGD)
    model.compile("adagrad")
    assert isinstance(model.optimizer, legacy.Adagrad)
    model.compile(tf.keras.optimizers.Adam(0.01))  # a small table: any optimizer will do
    monkeypatch.setattr(optimizers, "DENSE_UPDATE_LIMIT_BYTES", 1000)
    # TF 2.6's SGD is the sparse one.
    new_sgd = [] if legacy is tf.keras.optimizers else [tf.keras.optimizers.SGD(0.1)]
    for bad in ("adam", tf.keras.optimizers.Adam(0.01), legacy.Adam(0.01), *new_sgd):
        with pytest.raises(ValueError, match="rewrites the whole embedding table in every step"):
            model.compile(bad)
    with pytest.raises(ValueError, match="rewrites the whole"):
        model.compile(tf.keras.mixed_precision.LossScaleOptimizer(legacy.Adam(0.01)))
    for good in ("lazy_adam", legacy.SGD(0.1), TableAndDense(legacy.SGD(0.1), legacy.Adam(0.01))):
        model.compile(good)


def test_the_model_has_one_table():
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=0)
    assert [v.name for v in model.trainable_variables if optimizers.is_table(v)] == [model.embedding.table.name]
    assert isinstance(sparse_safe("adagrad", 10**12), legacy.Adagrad)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"nesterov": True}])
def test_sgd_takes_no_momentum_that_the_table_would_not_get(options):
    with pytest.raises(ValueError, match="momentum must be 0 and nesterov False, the table has none"):
        SGD(0.1, **options)
    copy = SGD.from_config(SGD(0.1).get_config())
    assert float(copy.learning_rate) == pytest.approx(0.1)
    make_optimizer("sgd", 0.1, momentum=0.9)
