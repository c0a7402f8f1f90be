"""`FitOptions`: one definition of every option, for `fit`, its flags and its cluster; and the placements it names."""

import argparse
import dataclasses
import inspect

import pytest

import dlrm_tf
from dlrm_tf.ascend.plugin import PRECISION_MODES
from dlrm_tf.cli import train
from dlrm_tf.errors import UsageError
from dlrm_tf.model.optimizers import DEFAULT_LEARNING_RATES, DENSE_OPTIMIZERS
from dlrm_tf.train.options import FitOptions
from dlrm_tf.train.placements import PLACEMENTS
from dlrm_tf.train.placements.base import Placement

FIELDS = {field.name: field for field in dataclasses.fields(FitOptions)}


@pytest.fixture
def parser():
    made = argparse.ArgumentParser()
    train.add_arguments(made)
    return made


def test_flags_are_the_fields_and_say_their_default(parser):
    actions = {action.dest: action for action in parser._actions}
    assert set(actions) - set(FIELDS) == {"help", "data", "output", "local_workers", "local_ps", "plot"}
    for name, field in FIELDS.items():
        assert actions[name].default == field.default and "(default: " in actions[name].help
        assert field.metadata["help"] in FitOptions.__doc__
    args = vars(parser.parse_args(["--data", "d", "-o", "r"]))
    assert FitOptions(**{name: args[name] for name in FIELDS}) == FitOptions()
    flags = ["--no-validation", "--resume", "--profile", "2:5", "--loss-scale", "8", "--optimizer-state", "--strategy", "one"]
    args = parser.parse_args(["--data", "d", "-o", "r", *flags])
    assert (args.validate, args.resume, args.optimizer_state, args.save_optimizer_state) == (False, True, True, False)
    assert (args.profile, args.loss_scale, args.strategy) == ((2, 5), 8.0, "default")


@pytest.mark.parametrize(
    "option, names",
    [
        ("optimizer", DEFAULT_LEARNING_RATES),
        ("dense_optimizer", DENSE_OPTIMIZERS),
        ("precision", PRECISION_MODES),
        ("strategy", PLACEMENTS),
    ],
)
def test_choices_are_what_there_is(option, names):
    assert FIELDS[option].metadata["choices"] == tuple(names)


@pytest.mark.parametrize("placement", PLACEMENTS.values())
def test_a_placement_has_the_interface_and_nothing_else_that_is_public(placement):
    assert issubclass(placement, Placement)
    for name, member in vars(placement).items():
        if not name.startswith("_"):
            assert hasattr(Placement, name)
            if inspect.isfunction(member):
                assert inspect.signature(member) == inspect.signature(getattr(Placement, name))


def test_options_travel_as_json(small_config, tmp_path):
    options = FitOptions(config=small_config, profile=[1, 2], loss_scale="dynamic", decay=0.5)
    assert FitOptions.from_json(options.to_json()) == options
    options = FitOptions(weights=tmp_path, optimizer_state=False)
    assert options.weights == str(tmp_path) and FitOptions.from_json(options.to_json()) == options


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "epochs must be positive. Received 0"),
        ({"optimizer": "adam"}, "optimizer must be one of sgd, adagrad, rowwise_adagrad, lazy_adam. Received 'adam'"),
        ({"decay": float("nan")}, "decay must be between 0 and 1. Received nan"),
        ({"decay": 2}, "decay must be between 0 and 1. Received 2"),
        ({"batch_size": 0}, "batch_size must be positive. Received 0"),
        ({"profile": (3, 2)}, "1 <= first <= last. Received 3, 2"),
        ({"weights": "x.weights.h5", "embedding_dim": 8}, "weights must come without embedding_dim"),
        ({"config": dlrm_tf.DLRMConfig.preset("tiny"), "top_mlp": (8,)}, "config must come without top_mlp"),
        ({"validation_share": 1.0}, "validation_share must be at least 0 and below 1. Received 1.0"),
        ({"validation_share": "some"}, "validation_share must be at least 0 and below 1. Received some"),
        ({"epochs": "many"}, "epochs must be positive. Received many"),
        ({"plateau_factor": 0.0}, "plateau_factor must be above 0 and at most 1. Received 0.0"),
        ({"l2": float("inf")}, "l2 must be a number of at least 0. Received inf"),
        ({"weights": "x.weights.h5", "config": dlrm_tf.DLRMConfig.preset("tiny")}, "weights must come without config"),
        ({"optimizer_state": True}, "optimizer_state needs weights"),
    ],
)
def test_what_is_out_of_range_or_excludes_another(options, message):
    with pytest.raises(UsageError, match=message):
        FitOptions(**options)


def test_an_unknown_option_is_named(tmp_path):
    with pytest.raises(TypeError, match="'epoch'"):
        dlrm_tf.fit(tmp_path, tmp_path / "run", epoch=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precision": "mixed"}, "go with strategy 'ascend'. Received 'mixed', None with strategy 'default'"),
        ({"profile": (1, 2), "strategy": "parameter_server"}, "not go with strategy 'parameter_server'. Received .1, 2."),
        (
            {"steps_per_execution": 5, "strategy": "mirrored"},
            "steps_per_execution must be 1 with strategy 'mirrored'.* Received 5",
        ),
    ],
)
def test_an_option_that_the_strategy_does_not_support(prepared, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        dlrm_tf.fit(prepared, tmp_path / "run", **options)


def test_names_of_0_1_0():
    with pytest.warns(DeprecationWarning, match="strategy 'one' is called 'default' now"):
        assert FitOptions(strategy="one").strategy == "default"
    with pytest.warns(DeprecationWarning, match="dlrm_tf.train.optimizers is dlrm_tf.model.optimizers now"):
        assert dlrm_tf.train.optimizers.make_optimizer is dlrm_tf.make_optimizer
