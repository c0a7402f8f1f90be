"""Recipes: what a file may hold, and what a run makes of it, the options given and the number of rows."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlrm_tf
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.model.optimizers import DEFAULT_LEARNING_RATES
from dlrm_tf.train.options import FitOptions
from dlrm_tf.train.recipe import DEFAULT, RECIPES, BatchRule, EpochRule, RateRule, Recipe, ValidationRule
from dlrm_tf.train.recipe_options import ARCHITECTURE, OFF
from dlrm_tf.train.resolve import new_config, resolve

EMPTY = {"title": "t", "source": "s", "expected": [], "options": {}}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe with some fields; returns its path."""

    def write(**fields):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({**EMPTY, **fields}))
        return str(path)

    return write


@given(st.integers(0, 10**8), st.integers(0, 12), st.integers(0, 8), st.integers(1, 5000))
def test_the_batch_is_the_largest_power_of_two_that_leaves_the_steps(rows, smallest, more, steps):
    rule = BatchRule(min=2**smallest, max=2 ** (smallest + more), steps_per_epoch=steps)
    fitting = [2**i for i in range(smallest, smallest + more + 1) if rows // 2**i >= steps]
    assert rule.batch_size(rows) == max(fitting, default=rule.min)


def test_rules_of_rates_and_validation():
    assert [RateRule(512, scaling).factor(2048) for scaling in ("none", "sqrt", "linear")] == [1.0, 2.0, 4.0]
    rule = EpochRule(steps=350, max=3)
    assert [rule.epochs(batches) for batches in (1, 116, 117, 175, 349, 350, 10**6)] == [3, 3, 3, 2, 2, 1, 1]
    rule = ValidationRule(share=0.1, most_rows=1000, least_rows=50)
    assert [rule.validation_rows(rows) for rows in (0, 499, 500, 9_999, 10_000, 10**7)] == [0, 0, 50, 999, 1000, 1000]
    for make in (
        lambda: BatchRule(100, 200, 5),
        lambda: BatchRule(256, 128, 5),
        lambda: EpochRule(0, 1),
        lambda: RateRule(0, "none"),
        lambda: RateRule(1, "cubic"),
        lambda: ValidationRule(1.0, 1, 1),
    ):
        with pytest.raises(ValueError, match="wanted .* Received"):
            make()


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("with_weights", [False, True])
def test_a_recipe_of_the_package_makes_a_run(name, with_weights, prepared):
    recipe = Recipe.read(name)
    assert recipe.title and recipe.source and all({"data", "measured_by"} <= set(e) for e in recipe.expected)
    options = resolve(FitOptions(recipe=name, weights="x.weights.h5" if with_weights else None), prepared).options
    for field in OFF:
        may_be_none = field in (*ARCHITECTURE, "dense_optimizer", "dense_learning_rate")
        assert getattr(options, field) is not None or may_be_none, field
    assert options.batch_size > 0 and 0 < options.learning_rate < 1
    if not with_weights:
        assert new_config(options, prepared).categorical_feature_sizes == prepared.sizes


def test_upstreams_recipe(prepared):
    plan = resolve(FitOptions(recipe="mindspore"), prepared)
    options = plan.options
    assert (options.optimizer, options.learning_rate, options.batch_size, options.epochs) == ("sgd", 0.15, 128, 1)
    assert (options.dense_optimizer, options.scheduled, options.patience, options.l2, options.dropout) == (None, False, 0, 0, 0)
    assert plan.records.rows("train") == 2572 and plan.records.rows("validation") == 0
    config = dataclasses.replace(dlrm_tf.DLRMConfig.preset("criteo_kaggle"), categorical_feature_sizes=prepared.sizes)
    assert new_config(options, prepared) == config
    assert plan.line == ("recipe mindspore: 2,572 rows: batch 128, sgd 0.15, 1 epoch of 21 steps; no validation rows")


def test_what_is_given_wins_and_what_depends_on_the_rows_is_worked_out(recipe, prepared):
    path = recipe(
        options={
            "optimizer": "lazy_adam",
            "learning_rate": 0.01,
            "dense_optimizer": "adam",
            "dense_learning_rate": 0.02,
            "batch_size": "auto",
            "warmup": 0.25,
            "epochs": 7,
            "validation_share": "auto",
            "patience": 2,
        },
        rules={
            "batch_size": {"min": 16, "max": 256, "steps_per_epoch": 30},
            "learning_rate": {"base_batch": 16, "scaling": "sqrt"},
            "validation_share": {"share": 0.25, "most_rows": 500, "least_rows": 1},
        },
    )
    plan = resolve(FitOptions(recipe=path), prepared)
    options = plan.options
    # 2,572 rows; 500 for validation; 2,072 / 30 = 69 rows a step.
    assert (plan.records.rows("validation"), plan.records.rows("train"), options.batch_size) == (500, 2072, 64)
    assert (options.learning_rate, options.dense_learning_rate) == (0.02, 0.04)  # sqrt(64 / 16)
    assert (options.warmup_steps, options.patience, options.epochs) == (8, 2, 7)  # a quarter of 33 steps
    assert "batch 64 (of 16 to 256, for 30 steps an epoch), lazy_adam 0.02 and adam 0.04, up to 7 epochs of 33 steps" in plan.line
    assert "8 of them warm-up; best weights by the last 500" in plan.line
    given_rate = resolve(FitOptions(recipe=path, learning_rate=0.5, batch_size=16, warmup_steps=3), prepared).options
    assert (given_rate.learning_rate, given_rate.dense_learning_rate, given_rate.warmup_steps) == (0.5, 0.02, 3)
    # Another optimizer than the recipe's comes with its own rate and trains the MLPs too.
    other = resolve(FitOptions(recipe=path, optimizer="sgd", decay=1.0), prepared).options
    assert (other.learning_rate, other.dense_optimizer) == (DEFAULT_LEARNING_RATES["sgd"], None)
    assert (other.warmup_steps, other.epochs) == (0, 7)  # the decay leaves no step for the recipe's warm-up
    assert resolve(FitOptions(recipe=path, dense_optimizer="sgd"), prepared).options.dense_learning_rate is None


def test_sections_for_fine_tuning_no_validation_and_strategies(recipe, prepared):
    path = recipe(
        options={
            "optimizer": "adagrad",
            "learning_rate": 0.1,
            "epochs": 9,
            "patience": 3,
            "validation_share": 0.1,
            "warmup": 0.5,
        },
        few_rows={"below": 3000, "options": {"dropout": 0.5}},
        fine_tune={"learning_rate": 0.01, "warmup": 0.0},
        without_validation={"epochs": 2},
        by_strategy={"tpu": {"optimizer": "sgd", "learning_rate": 0.2}},
    )
    tuned = resolve(FitOptions(recipe=path, weights="x.weights.h5"), prepared).options
    assert (tuned.learning_rate, tuned.warmup_steps, tuned.epochs, tuned.dropout) == (0.01, 0, 9, 0.0)
    assert resolve(FitOptions(recipe=path), prepared).options.dropout == 0.5  # 2,572 rows
    unmeasured = resolve(FitOptions(recipe=path, validate=False), prepared)
    assert (unmeasured.options.epochs, unmeasured.options.patience) == (2, 0)
    assert unmeasured.records.rows("train") == 2572
    assert resolve(FitOptions(recipe=path, validation_share=0.0, epochs=4), prepared).options.epochs == 4
    assert resolve(FitOptions(recipe=path, strategy="tpu"), prepared).options.optimizer == "sgd"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"validate": False, "patience": 2}, "patience needs validation rows. Received 2 without any"),
        ({"validation_share": 0.0, "plateau_factor": 0.1}, "plateau_factor needs validation rows. Received 0.1 without any"),
        ({"optimizer": "sgd", "dense_learning_rate": 0.1}, "dense_learning_rate needs dense_optimizer. Received 0.1 without one"),
    ],
)
def test_what_needs_something_that_is_not_there(options, message, prepared):
    with pytest.raises(UsageError, match=message):
        resolve(FitOptions(**options), prepared)


def test_records_with_a_validation_split_of_their_own_keep_it(prepared):
    plan = resolve(FitOptions(), prepared.with_validation(300))
    assert (plan.records.rows("validation"), plan.records.rows("train")) == (300, 2272)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "wanted a recipe, which is JSON"),
        ("[]", "wanted an object of title, source, expected, options .* Received list"),
        ('{"title": "t"}', "wanted an object of .* Received 'title'"),
        (json.dumps({**EMPTY, "option": {}}), "wanted an object of .* 'option'"),
        (json.dumps({**EMPTY, "options": []}), r"options must be a JSON dict. Received \[\]"),
        (json.dumps({**EMPTY, "rules": {"dropout": {}}}), "wanted rules of batch_size, .* Received one of 'dropout'"),
        (json.dumps({**EMPTY, "rules": {"epochs": {"steps": 1}}}), "rule of epochs: .*'max'"),
        (json.dumps({**EMPTY, "few_rows": {"below": 9}}), "few_rows: wanted below, a number of rows, and options. Received"),
        (
            json.dumps({**EMPTY, "few_rows": {"below": 9, "options": {"seed": 1}}}),
            "few_rows: wanted options of a recipe. Received seed",
        ),
        (json.dumps({**EMPTY, "rules": {"learning_rate": {"base": 1}}}), "rule of learning_rate: .*'base'"),
        (json.dumps({**EMPTY, "options": {"seed": 1}}), "options: wanted options of a recipe. Received seed"),
        (json.dumps({**EMPTY, "fine_tune": {"rate": 1}}), "fine_tune: wanted options of a recipe. Received rate"),
        (json.dumps({**EMPTY, "options": {"epochs": "two"}}), "epochs must be positive. Received two"),
    ],
)
def test_a_file_that_is_no_recipe(text, message, prepared, tmp_path):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=message):
        resolve(FitOptions(recipe=str(tmp_path / "r.json")), prepared)


def test_a_recipe_that_is_not_there(prepared, tmp_path):
    for name in ("fast", str(tmp_path)):
        with pytest.raises(DataError, match="recipe: wanted default, mindspore, bars or a JSON file. Received"):
            resolve(FitOptions(recipe=name), prepared)


@pytest.mark.parametrize(
    "flags, bottom, top, width",
    [
        ({}, (512, 256, 64, 16), (512, 256, 1), 16),
        ({"embedding_dim": 32}, (512, 256, 64, 32), (512, 256, 1), 32),
        ({"embedding_dim": 32, "bottom_mlp": (64, 32), "top_mlp": (64, 1)}, (64, 32), (64, 1), 32),
        ({"embedding_dim": 8, "bottom_mlp": (64,), "top_mlp": (32,)}, (64, 8), (32, 1), 8),
        ({"bottom_mlp": (64, 24)}, (64, 24), (512, 256, 1), 24),
    ],
)
def test_the_architecture_of_flags(flags, bottom, top, width, prepared):
    config = new_config(resolve(FitOptions(**flags), prepared).options, prepared)
    assert (config.bottom_mlp, config.top_mlp, config.embedding_dim) == (bottom, top, width)
    assert (config.categorical_feature_sizes, config.dense_dim) == (prepared.sizes, 13)


def test_an_architecture_that_can_not_be(prepared):
    with pytest.raises(UsageError, match=r"bottom_mlp\[0\] must be a positive integer. Received 0"):
        new_config(resolve(FitOptions(bottom_mlp=(0, 16)), prepared).options, prepared)


def test_the_help_says_what_the_default_recipe_does():
    fields = {field.name: field.metadata["help"] for field in dataclasses.fields(FitOptions)}
    for name, off in OFF.items():
        value = DEFAULT.options.get(name, off)
        if value is not None:
            assert fields[name].endswith(f"(default: {value})")
