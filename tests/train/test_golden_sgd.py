"""Twenty steps of `model.fit` against the same steps in MindSpore 2.10: losses, weights and probabilities."""

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import make_optimizer

tf = tensorflow()


class StepLosses(tf.keras.callbacks.Callback):
    """Loss of every step, from the running mean that Keras reports (equal batches)."""

    def on_train_begin(self, logs=None):
        self.means = []

    def on_train_batch_end(self, batch, logs=None):
        self.means.append(logs["loss"])

    @property
    def losses(self):
        return np.diff(np.array(self.means) * np.arange(1, len(self.means) + 1), prepend=0)


def converted(path, folder):
    target = folder / (path.name + ".weights.h5")
    dlrm_tf.convert(path, target, quiet=True)
    return dlrm_tf.load(target)


@pytest.mark.parametrize("name", ["tiny", "hub_layout"])
@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_sgd_gives_mindspores_losses_and_weights(name, steps_per_execution, golden_run, golden_ckpt, tmp_path):
    settings, arrays = golden_run(name)
    steps = settings["steps"]
    model = converted(golden_ckpt(name, "init"), tmp_path)
    wanted = converted(golden_ckpt(name, "trained"), tmp_path)
    scoring = {key: arrays[key][steps] for key in ("dense", "categorical")}
    for stage, loaded in (("init", model), ("trained", wanted)):
        np.testing.assert_allclose(tf.sigmoid(loaded(scoring)), arrays[f"prob_{stage}"], rtol=0, atol=1e-6)
    # Loss scaling is left out: it cancels.
    model.compile(make_optimizer("sgd", settings["learning_rate"]), steps_per_execution=steps_per_execution)
    batches = ({key: arrays[key][:steps] for key in ("dense", "categorical")}, arrays["label"][:steps])
    seen = StepLosses()
    model.fit(tf.data.Dataset.from_tensor_slices(batches), callbacks=[seen], verbose=0)

    if steps_per_execution == 1:
        np.testing.assert_allclose(seen.losses, arrays["losses"], rtol=0, atol=1e-5)
    assert seen.means[-1] == pytest.approx(arrays["losses"].mean(), abs=1e-5)
    for mine, theirs in zip(model.trainable_variables, wanted.trainable_variables):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-5, err_msg=mine.name)
    np.testing.assert_allclose(tf.sigmoid(model(scoring)), arrays["prob_trained"], rtol=0, atol=1e-6)
