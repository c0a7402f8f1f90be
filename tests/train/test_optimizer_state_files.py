"""Our own optimizer state through weights files: train, grow, train again, as if the model had never left memory."""

import dataclasses

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.cli import main
from dlrm_tf.data.records import Records
from dlrm_tf.errors import CheckpointError, UsageError
from dlrm_tf.model.optimizers import is_table, make_optimizer
from dlrm_tf.train.optimizer_state import _variables, restore_optimizer_state, save_with_optimizer_state
from dlrm_tf.weights.layout import TABLE

BATCH = 500
OPTIMIZERS = [
    {"optimizer": "adagrad"},
    {"optimizer": "sgd", "momentum": 0.9},
    {"optimizer": "rowwise_adagrad"},
    {"optimizer": "lazy_adam"},
    {"optimizer": "adagrad", "dense_optimizer": "adam"},
]


def made(options):
    return make_optimizer(options["optimizer"], momentum=options.get("momentum", 0.0), dense=options.get("dense_optimizer"))


def slots(model):
    """`(path, slot) -> values` of all slots of a model's optimizer, and its step count."""
    parts = getattr(model.optimizer, "optimizers", [model.optimizer])
    found = {"steps": int(model.optimizer.iterations)}
    for path, variable in _variables(model).items():
        part = parts[-1] if is_table(variable) else parts[0]
        found.update({(path, name): part.get_slot(variable, name).numpy() for name in part.get_slot_names()})
    return found


def restored(path, options):
    """The model of a weights file, compiled, with the optimizer's state in the file."""
    model = dlrm_tf.load(path)
    model.compile(made(options))
    restore_optimizer_state(model, model.optimizer, path)
    return model


def assert_same(one, other):
    assert one.keys() == other.keys() and len(one) > 1
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=str(key))


@pytest.fixture(scope="module")
def more_data(prepared, tmp_path_factory):
    """Data with the ids of `prepared` and new ones."""
    folder = tmp_path_factory.mktemp("more")
    dlrm_tf.synth(str(folder / "more.txt"), 1500, seed=6, cardinalities=[70] * 26, quiet=True)
    old = str(folder / "old.npz")
    prepared.vocabulary().save(old)
    command = ["prepare", str(folder / "more.txt"), "-o", str(folder / "data"), "--vocabulary", old, "--grow"]
    assert main.main(command) == 0
    return Records.open(str(folder / "data"))


CASES = [*((options, {}) for options in OPTIMIZERS), (OPTIMIZERS[-1], {"interaction": "cross", "cross_rank": 5})]


@pytest.mark.slow
@pytest.mark.parametrize("options, head", CASES, ids=lambda o: "-".join(map(str, o.values())))
def test_train_grow_train_goes_on_with_the_state(options, head, prepared, more_data, small_config, tmp_path, capsys):
    small_config = dataclasses.replace(small_config, **head)
    (tmp_path / "small.json").write_text(small_config.to_json())
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    flags += ["--recipe", "mindspore", "--batch-size", str(BATCH), "--no-validation", "--save-optimizer-state"]
    command = ["train", "--data", prepared.folder, "-o", str(tmp_path / "one"), "--config", str(tmp_path / "small.json")]
    assert main.main([*command, *flags, "--quiet"]) == 0
    more_data.vocabulary().save(str(tmp_path / "new.npz"))
    first, grown = str(tmp_path / "one" / "model.weights.h5"), str(tmp_path / "grown.weights.h5")
    assert main.main(["grow", first, "--vocabulary", str(tmp_path / "new.npz"), "-o", grown]) == 0
    capsys.readouterr()
    assert main.main(["train", "--data", more_data.folder, "-o", str(tmp_path / "two"), "--weights", grown, *flags]) == 0
    assert f"{grown}: the optimizer continues with its state after 6 steps\n" in capsys.readouterr().err

    # In memory: the same optimizer all along, the model grown by model.grow.
    model = dlrm_tf.DLRM(small_config, seed=0)
    model.compile(made(options))
    model.fit(prepared.dataset("train", BATCH, shuffle_seed=0), verbose=0)
    assert_same(slots(restored(first, options)), slots(model))
    larger = model.grow(more_data.sizes)
    assert sum(more_data.sizes) > sum(prepared.sizes)
    assert_same(slots(restored(grown, options)), slots(larger))
    larger.load_weights(grown)  # the new rows' random weights
    larger.fit(more_data.dataset("train", BATCH, shuffle_seed=0), verbose=0)
    result = restored(tmp_path / "two" / "model.weights.h5", options)
    assert slots(result)["steps"] > 6
    assert_same(slots(result), slots(larger))
    for mine, theirs in zip(result.trainable_variables, larger.trainable_variables):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


@pytest.fixture
def adagrad_file(prepared, small_config, tmp_path):
    options = {"config": small_config, "recipe": "mindspore", "batch_size": BATCH, "validate": False, "quiet": True}
    return dlrm_tf.fit(prepared, tmp_path / "first", optimizer="adagrad", save_optimizer_state=True, **options).weights


@pytest.mark.slow
def test_state_that_does_not_fit_is_told_and_an_error_only_when_asked_for(prepared, adagrad_file, tmp_path, capsys):
    command = ["train", "--data", prepared.folder, "--weights", adagrad_file, "--batch-size", str(BATCH), "--no-validation"]
    command += ["--recipe", "mindspore", "--optimizer", "lazy_adam"]
    assert main.main([*command, "-o", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().err
    assert (
        f"the optimizer starts anew: {adagrad_file}: holds the state of MindSpore's adagrad, which LazyAdam has no place" in told
    )
    assert main.main([*command, "-o", str(tmp_path / "b"), "--optimizer-state"]) == 1
    assert "which LazyAdam has no place for" in capsys.readouterr().err
    assert main.main([*command, "-o", str(tmp_path / "c"), "--no-optimizer-state"]) == 0
    assert "the optimizer" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_without_state(prepared, small_config, tmp_path, capsys):
    dlrm_tf.DLRM(small_config, seed=1).save_weights(tmp_path / "x.weights.h5")
    options = {"weights": tmp_path / "x.weights.h5", "batch_size": BATCH, "validate": False}
    dlrm_tf.fit(prepared, tmp_path / "a", **options)
    assert "x.weights.h5: no optimizer state in it, the optimizer starts anew" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="x.weights.h5: wanted optimizer state of"):
        dlrm_tf.fit(prepared, tmp_path / "b", optimizer_state=True, **options)
    with pytest.raises(UsageError, match="optimizer_state needs weights"):
        dlrm_tf.fit(prepared, tmp_path / "c", optimizer_state=True)
    with pytest.raises(UsageError, match="goes with strategy 'default'. Received 'mirrored'"):
        dlrm_tf.fit(prepared, tmp_path / "c", save_optimizer_state=True, strategy="mirrored")


@pytest.mark.slow
def test_a_schedule_counts_steps_from_0_again(prepared, adagrad_file, tmp_path, capsys):
    """Adagrad's accumulators are taken over, its steps are not: the decay is of the new run's steps."""
    options = {"weights": adagrad_file, "batch_size": BATCH, "validate": False, "decay": 1.0, "epochs": 1}
    trained = dlrm_tf.fit(prepared, tmp_path / "run", optimizer="adagrad", **options)
    assert "continues with its state after 6 steps" in capsys.readouterr().err
    assert int(trained.model.optimizer.iterations) == 6
    accumulators = trained.model.optimizer.get_slot(trained.model.embedding.table, "accumulator").numpy()
    earlier = slots(restored(adagrad_file, OPTIMIZERS[0]))[TABLE, "accumulator"]
    assert (accumulators >= earlier).all() and (accumulators > earlier).any()
    with pytest.raises(CheckpointError, match="Adam's state counts steps, and so do warm-up and decay"):
        dlrm_tf.fit(prepared, tmp_path / "other", optimizer="lazy_adam", optimizer_state=True, **options)


def test_an_optimizer_without_a_place_in_the_file(small_config, tmp_path):
    model = dlrm_tf.DLRM(small_config, seed=1)
    model.compile("ftrl")
    with pytest.raises(CheckpointError, match="a weights file has no place for the state of Ftrl"):
        save_with_optimizer_state(model, model.optimizer, tmp_path / "x.weights.h5")
    assert not (tmp_path / "x.weights.h5").exists()


@pytest.mark.slow
def test_adagrads_state_goes_to_mindspore_and_back_the_others_are_refused(prepared, adagrad_file, small_config, tmp_path):
    dlrm_tf.convert(adagrad_file, tmp_path / "m.ckpt", optimizer_state=True, quiet=True)
    dlrm_tf.convert(tmp_path / "m.ckpt", tmp_path / "back.weights.h5", config=small_config, optimizer_state=True, quiet=True)
    assert_same(*(slots(restored(path, OPTIMIZERS[0])) for path in (tmp_path / "back.weights.h5", adagrad_file)))
    for options in ({"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adagrad", "dense_optimizer": "sgd"}):
        run = tmp_path / options["optimizer"]
        options = {**options, "config": small_config, "batch_size": BATCH, "validate": False, "quiet": True}
        other = dlrm_tf.fit(prepared, run, save_optimizer_state=True, **options).weights
        with pytest.raises(CheckpointError, match="wanted optimizer state that MindSpore has .* Received dlrm_tf's"):
            dlrm_tf.convert(other, run / "m.ckpt", optimizer_state=True, quiet=True)
        assert not (run / "m.ckpt").exists()
