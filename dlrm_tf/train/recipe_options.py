"""The options of `fit` that a recipe sets where they are not given; `FitOptions` has the others. Loads without TensorFlow."""

import dataclasses
from typing import Any, Callable, Optional, Union

from dlrm_tf.config import INTERACTIONS
from dlrm_tf.errors import UsageError
from dlrm_tf.train.option import number_or, recipe_option, units

# The options that together are the architecture of a new model.
ARCHITECTURE = ("embedding_dim", "bottom_mlp", "top_mlp", "interaction", "cross_layers", "cross_rank")
_AUTO = ("batch_size", "epochs", "validation_share")
# Options, what they must be, and whether a value is.
_RANGES: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
    (
        (
            "embedding_dim",
            "cross_layers",
            "cross_rank",
            "epochs",
            "batch_size",
            "steps_per_execution",
            "checkpoint_steps",
            "validations_per_epoch",
            "plateau_patience",
        ),
        "positive",
        lambda n: n >= 1,
    ),
    (("warmup_steps", "patience", "l2", "clip_norm"), "a number of at least 0", lambda x: 0 <= x < float("inf")),
    (("decay", "warmup"), "between 0 and 1", lambda x: 0 <= x <= 1),
    (("validation_share", "dropout", "label_smoothing"), "at least 0 and below 1", lambda x: 0 <= x < 1),
    (("table_init_scale",), "a positive number", lambda x: 0 < x < float("inf")),
    (("plateau_factor",), "above 0 and at most 1", lambda x: 0 < x <= 1),
)


@dataclasses.dataclass(frozen=True)
class RecipeOptions:
    """What a recipe says of a training; a field is None where it is not given.

    Raises:
      UsageError: a value out of range; the message names the option.
    """

    embedding_dim: Optional[int] = recipe_option(
        "embedding_dim", None, "width of an embedding row in a new model", kind=int, metavar="D", unset="16"
    )
    bottom_mlp: Optional[tuple[int, ...]] = recipe_option(
        "bottom_mlp",
        None,
        "units of the bottom MLP's layers; a last layer of embedding_dim units follows where they do not end with it",
        kind=units,
        metavar="UNITS",
        unset="512,256,64,D",
    )
    top_mlp: Optional[tuple[int, ...]] = recipe_option(
        "top_mlp",
        None,
        "units of the top MLP's layers; the logit's one unit follows where they do not end with it",
        kind=units,
        metavar="UNITS",
        unset="512,256,1",
    )
    interaction: Optional[str] = recipe_option(
        "interaction",
        None,
        "how the vectors of a row meet (DLRMConfig.interaction)",
        kind=str,
        choices=INTERACTIONS,
        unset="dot",
    )
    cross_layers: Optional[int] = recipe_option(
        "cross_layers", None, "with interaction cross, the number of cross layers", kind=int, metavar="N", unset="3"
    )
    cross_rank: Optional[int] = recipe_option(
        "cross_rank",
        None,
        "with interaction cross, the rank of a cross layer's matrix",
        kind=int,
        metavar="N",
        unset="a full matrix",
    )
    table_init_scale: Optional[float] = recipe_option(
        "table_init_scale",
        1.0,
        "range of a new table's rows, as a part of upstream's, which is +-sqrt(1 / ids of the feature)",
        kind=float,
        metavar="X",
    )
    optimizer: Optional[str] = recipe_option(
        "optimizer",
        "adagrad",
        "optimizer of the embedding table, and of the MLPs unless dense_optimizer names another; another one than the recipe's "
        "comes with its own rate and trains the MLPs too",
        kind=str,
        choices=("sgd", "adagrad", "rowwise_adagrad", "lazy_adam"),
    )
    learning_rate: Optional[float] = recipe_option(
        "learning_rate",
        None,
        "learning rate of the optimizer; the recipe's follows the batch size, one that is given is taken as it is",
        kind=float,
        metavar="RATE",
        unset="the optimizer's own",
    )
    momentum: Optional[float] = recipe_option(
        "momentum", 0.0, "momentum of the MLPs, with optimizer sgd; the table has none", kind=float, metavar="M"
    )
    dense_optimizer: Optional[str] = recipe_option(
        "dense_optimizer",
        None,
        "another optimizer for the MLPs",
        kind=str,
        choices=("sgd", "adagrad", "adam"),
        unset="the table's",
    )
    dense_learning_rate: Optional[float] = recipe_option(
        "dense_learning_rate", None, "learning rate of dense_optimizer", kind=float, metavar="RATE", unset="learning_rate"
    )
    warmup_steps: Optional[int] = recipe_option(
        "warmup_steps",
        None,
        "steps over which the learning rates rise linearly to their value",
        kind=int,
        metavar="N",
        unset="what warmup says",
    )
    warmup: Optional[float] = recipe_option(
        "warmup", 0.0, "the same as a part of the steps of one epoch, 0 to 1", kind=float, metavar="PART"
    )
    decay: Optional[float] = recipe_option(
        "decay",
        0.0,
        "last part of all steps, 0 to 1, over which the learning rates fall linearly to 0",
        kind=float,
        metavar="PART",
    )
    plateau_factor: Optional[float] = recipe_option(
        "plateau_factor",
        1.0,
        "what the learning rates are multiplied by when the validation logloss has not improved; 1: never",
        kind=float,
        metavar="F",
    )
    plateau_patience: Optional[int] = recipe_option(
        "plateau_patience", 1, "validations without improvement after which plateau_factor applies", kind=int, metavar="N"
    )
    epochs: Union[None, int, str] = recipe_option(
        "epochs",
        1,
        "passes over the training rows, those before a resume included; with patience, the most there may be; auto: one, more "
        "where the rows are few",
        kind=number_or("auto", int),
        metavar="N",
    )
    batch_size: Union[None, int, str] = recipe_option(
        "batch_size",
        2048,
        "rows per step, of all devices and processes together; auto: a power of two by the number of rows",
        kind=number_or("auto", int),
        metavar="ROWS",
    )
    validation_share: Union[None, float, str] = recipe_option(
        "validation_share",
        0.0,
        "the last part of the training rows that is not trained on but chooses the best weights, 0 to 1; auto: by their number",
        kind=number_or("auto", float),
        metavar="PART",
    )
    validations_per_epoch: Optional[int] = recipe_option(
        "validations_per_epoch",
        1,
        "how often in an epoch, evenly spaced, the validation rows are measured",
        kind=int,
        metavar="N",
    )
    patience: Optional[int] = recipe_option(
        "patience",
        0,
        "validations without improvement of the logloss after which training stops; 0: never",
        kind=int,
        metavar="N",
    )
    l2: Optional[float] = recipe_option(
        "l2",
        0.0,
        "adds l2 * row to the gradient of every distinct row of the table that a batch uses, whatever the batch's size",
        kind=float,
        metavar="X",
    )
    dropout: Optional[float] = recipe_option(
        "dropout", 0.0, "share of the top MLP's hidden units that are left out in a training step", kind=float, metavar="PART"
    )
    label_smoothing: Optional[float] = recipe_option(
        "label_smoothing",
        0.0,
        "trains on labels drawn towards 1/2 by this part; spoils the calibration",
        kind=float,
        metavar="PART",
    )
    clip_norm: Optional[float] = recipe_option(
        "clip_norm", 0.0, "largest norm of a step's gradient, table and MLPs together; 0: any", kind=float, metavar="NORM"
    )
    reset_table_each_epoch: Optional[bool] = recipe_option(
        "reset_table_each_epoch",
        False,
        "experiment: draw the table anew before every epoch but the first, against overfitting in the second (arXiv 2305.19531)",
        kind=bool,
    )

    def __post_init__(self) -> None:
        for name in ("bottom_mlp", "top_mlp"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value is not None and value not in choices:
                raise UsageError(f"{field.name} must be one of {', '.join(choices)}. Received {value!r}")
        for names, wanted, fits in _RANGES:
            for name in names:
                value = getattr(self, name, None)
                if value is None or (value == "auto" and name in _AUTO):
                    continue
                if isinstance(value, str) or not fits(value):
                    raise UsageError(f"{name} must be {wanted}. Received {value}")

    @property
    def given(self) -> dict[str, Any]:
        """The options that a recipe may set and that were given, by name."""
        values = {name: getattr(self, name) for name in OFF}
        return {name: value for name, value in values.items() if value is not None}


# The value of each option where neither it nor the recipe is given.
OFF = {field.name: field.metadata["off"] for field in dataclasses.fields(RecipeOptions)}
