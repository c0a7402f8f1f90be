"""From options, recipe and the number of rows to what a run does: one `Plan`, made before anything is trained."""

import dataclasses
from typing import Any, NamedTuple

from dlrm_tf.config import DLRMConfig
from dlrm_tf.data.records import VALIDATION, Records
from dlrm_tf.errors import DataError, UsageError
from dlrm_tf.model.optimizers import DEFAULT_LEARNING_RATES
from dlrm_tf.train.options import FitOptions, ResolvedOptions
from dlrm_tf.train.recipe import Recipe
from dlrm_tf.train.recipe_options import ARCHITECTURE, OFF, RecipeOptions

# What an optimizer that the recipe does not name comes without.
_OF_THE_OPTIMIZER = ("learning_rate", "dense_optimizer", "dense_learning_rate", "momentum")
_CHOOSING = ("patience", "plateau_factor")


class Plan(NamedTuple):
    """What a run does.

    Attributes:
      options: the options with the recipe's values in place.
      records: the data, with its validation split.
      line: what was chosen and why.
    """

    options: ResolvedOptions
    records: Records
    line: str


def resolve(options: FitOptions, records: Records) -> Plan:
    """Puts the recipe's values where an option is not given, and works out what depends on the number of rows.

    Args:
      options: as they were given.
      records: the data.

    Raises:
      DataError: no such recipe, a damaged one, or no rows to train on.
      UsageError: options that exclude each other, or need what is not there.
    """
    recipe, given = Recipe.read(options.recipe), options.given
    rows = records.rows("train")
    if not rows:
        raise DataError(f"{records.folder}: there are no training rows")
    if "bottom_mlp" in given and not records.spec.dense_columns:  # a recipe's is for whatever data
        raise UsageError(f"bottom_mlp needs dense features. Received {given['bottom_mlp']}; {records.folder} has none")
    values = _values(recipe, options, rows)

    validation_rows = records.rows(VALIDATION)  # records that come with a split of their own keep it
    if options.validate and not validation_rows:
        share = values["validation_share"]
        validation_rows = recipe.rules["validation_share"].validation_rows(rows) if share == "auto" else int(rows * share)
        if validation_rows >= rows:
            raise UsageError(f"validation_share must leave rows to train on. Received {share} of {rows} rows")
    records = records.with_validation(validation_rows)
    if not (options.validate and validation_rows):
        values = {**values, **recipe.without_validation, **given, **_without_validation(given)}
    rows = records.rows("train")

    reasons = []
    if values["batch_size"] == "auto":
        rule = recipe.rules["batch_size"]
        values["batch_size"] = rule.batch_size(rows)
        reasons.append(
            f"batch {values['batch_size']:,} (of {rule.min:,} to {rule.max:,}, for {rule.steps_per_epoch:,} steps an epoch)"
        )
    else:
        reasons.append(f"batch {values['batch_size']:,}")
    batches = -(-rows // values["batch_size"])
    if values["epochs"] == "auto":
        values["epochs"] = recipe.rules["epochs"].epochs(batches)
    _set_rates(values, given, recipe)
    if values["warmup_steps"] is None:
        total = batches * values["epochs"]
        values["warmup_steps"] = min(int(batches * values["warmup"]), total - int(total * values["decay"]))
    values["validation_share"] = validation_rows / (rows + validation_rows)
    resolved = ResolvedOptions(**{**{f.name: getattr(options, f.name) for f in dataclasses.fields(options)}, **values})
    return Plan(resolved, records, _line(resolved, records, batches, reasons))


def new_config(options: ResolvedOptions, records: Records) -> DLRMConfig:
    """The architecture of a new model: that of the options, at the data's vocabulary sizes.

    Args:
      options: of a `Plan`.
      records: the data.

    Raises:
      UsageError: values that do not fit each other.
    """
    if options.config is not None:
        return options.config
    usual = DLRMConfig.preset("criteo_kaggle")
    width = options.embedding_dim or (options.bottom_mlp[-1] if options.bottom_mlp else usual.embedding_dim)
    bottom = options.bottom_mlp or usual.bottom_mlp[:-1]
    top = options.top_mlp or usual.top_mlp
    # A field of DLRMConfig that has an option of its own is added here, and to ARCHITECTURE.
    try:
        return DLRMConfig(
            **records.config_fields(),
            embedding_dim=width,
            bottom_mlp=bottom if bottom[-1] == width else (*bottom, width),
            top_mlp=top if top[-1] == 1 else (*top, 1),
            interaction=options.interaction or usual.interaction,
            cross_layers=options.cross_layers or usual.cross_layers,
            cross_rank=options.cross_rank,
        )
    except ValueError as e:
        raise UsageError(str(e)) from e


def _values(recipe: Recipe, options: FitOptions, rows: int) -> dict[str, Any]:
    """Every option that a recipe may set, by name, without the sizes that follow from the number of rows."""
    below, for_few_rows = recipe.few_rows
    sections = {
        "options": recipe.options,
        "few_rows": for_few_rows,
        "fine_tune": recipe.fine_tune,
        "without_validation": recipe.without_validation,
    }
    for where, values in {**sections, **recipe.by_strategy}.items():
        unknown = sorted(set(values) - set(OFF))
        if unknown:
            raise DataError(f"recipe {recipe.name}: {where}: wanted options of a recipe. Received {', '.join(unknown)[:200]}")
        try:
            RecipeOptions(**values)
        except (TypeError, UsageError) as e:
            raise DataError(f"recipe {recipe.name}: {where}: {e}") from e
    given = options.given
    theirs = {**OFF, **recipe.options}
    if options.weights is not None:
        theirs.update(recipe.fine_tune)
    elif rows < below:
        theirs.update(for_few_rows)
    theirs.update(recipe.by_strategy.get(options.strategy, {}))
    if options.weights is not None or options.config is not None:
        theirs.update(dict.fromkeys(ARCHITECTURE))
    if given.get("optimizer", theirs["optimizer"]) != theirs["optimizer"]:
        theirs.update({name: OFF[name] for name in _OF_THE_OPTIMIZER})
    elif given.get("dense_optimizer", theirs["dense_optimizer"]) != theirs["dense_optimizer"]:
        theirs["dense_learning_rate"] = None
    if "warmup" in given:
        theirs["warmup_steps"] = None
    values = {**theirs, **given}
    if "dense_learning_rate" in given and values["dense_optimizer"] is None:
        raise UsageError(f"dense_learning_rate needs dense_optimizer. Received {given['dense_learning_rate']} without one")
    return values


def _without_validation(given: dict[str, Any]) -> dict[str, Any]:
    """The options that need validation rows, off; an error where they were asked for."""
    asked = [name for name in _CHOOSING if given.get(name, OFF[name]) != OFF[name]]
    if asked:
        raise UsageError(f"{asked[0]} needs validation rows. Received {given[asked[0]]} without any: give a validation_share")
    return {name: OFF[name] for name in _CHOOSING}


def _set_rates(values: dict[str, Any], given: dict[str, Any], recipe: Recipe) -> None:
    """The recipe's rates for this batch size; rates that were given, and those of another optimizer, as they are."""
    rule = recipe.rules.get("learning_rate")
    factor = rule.factor(values["batch_size"]) if rule else 1.0
    for name in ("learning_rate", "dense_learning_rate"):
        if name not in given and values[name] is not None:
            values[name] *= factor
    if values["learning_rate"] is None:
        values["learning_rate"] = DEFAULT_LEARNING_RATES[values["optimizer"]]


def _line(options: ResolvedOptions, records: Records, batches: int, reasons: list[str]) -> str:
    optimizers = f"{options.optimizer} {options.learning_rate:.4g}"
    if options.dense_optimizer:
        optimizers += f" and {options.dense_optimizer} {options.dense_learning_rate or options.learning_rate:.4g}"
    epochs = f"{'up to ' if options.patience else ''}{options.epochs} epoch{'s' if options.epochs != 1 else ''}"
    warmup = f", {options.warmup_steps:,} of them warm-up" if options.warmup_steps else ""
    chosen = f"best weights by the last {records.rows(VALIDATION):,}" if records.rows(VALIDATION) else "no validation rows"
    return (
        f"recipe {options.recipe}: {records.rows('train'):,} rows: {', '.join(reasons)}, {optimizers}, {epochs} of {batches:,} "
        f"steps{warmup}; {chosen}"
    )
