"""`FitOptions`: every option of `fit`, which are the flags of `dlrm-tf train`. Loads without TensorFlow."""

import dataclasses
import json
import os
import warnings
from typing import Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import UsageError
from dlrm_tf.train.option import LossScale, number_or, option, steps
from dlrm_tf.train.recipe_options import ARCHITECTURE, RecipeOptions

# Name in version 0.1.0 -> name now.
_RENAMED_STRATEGIES = {"one": "default"}


def _strategy(name: str) -> str:
    if name in _RENAMED_STRATEGIES:
        warnings.warn(f"strategy {name!r} is called {_RENAMED_STRATEGIES[name]!r} now", DeprecationWarning, stacklevel=4)
    return _RENAMED_STRATEGIES.get(name, name)


@dataclasses.dataclass(frozen=True)
class FitOptions(RecipeOptions):
    """How `fit` trains. Every field is a keyword argument of `fit` and a flag of `dlrm-tf train`.

    A field that the recipe sets is None where it is not given (`dlrm_tf.train.resolve` puts the recipe's value in its place).

    Raises:
      UsageError: a value out of range, or options that exclude each other; the message names the option.
    """

    weights: Optional[str] = option(
        None, "a .weights.h5 to start from; it must belong to this data", kind=str, metavar="FILE", unset="a new model"
    )
    config: Optional[DLRMConfig] = option(
        None,
        "architecture of a new model: a DLRMConfig, on the command line a JSON file",
        kind=str,
        metavar="FILE",
        unset="that of the options for it, at the data's vocabulary sizes",
    )
    recipe: str = option(
        "default",
        "where the options come from that are not given: default; mindspore, upstream's SGD 0.15 at batch 128; bars, that of the "
        "BARS benchmark; or a JSON file of one's own",
        metavar="NAME",
    )
    seed: int = option(0, "seed of the initial weights and of the order of the rows", metavar="N")
    resume: bool = option(False, "continue from the run's newest checkpoint; start from the beginning when there is none")
    checkpoint_steps: Optional[int] = option(
        None, "write a checkpoint every N steps too", kind=int, metavar="N", unset="only at the end of an epoch"
    )
    steps_per_execution: int = option(
        1,
        "steps run without returning to Python, which saves time with small batches; progress, checkpoints and the check for "
        "NaN then come once in N steps; 1 with strategy mirrored and multi_worker",
        metavar="N",
    )
    validate: bool = option(
        True,
        "leave validation rows out of the training, measure them, and at the end the test split; without it, all rows are "
        "trained on and nothing is measured",
        flag="--validation",
    )
    profile: Optional[tuple[int, int]] = option(
        None,
        "first and last step, from 1, to record TensorFlow's profile of, into tensorboard/; not with strategy parameter_server",
        kind=steps,
        metavar="FIRST:LAST",
        unset="no profile",
    )
    strategy: str = option(
        "default",
        "devices and processes that train together; only the chief process writes. default: one device of this process; "
        "mirrored: all GPUs of this machine; multi_worker: the workers of TF_CONFIG, in step; parameter_server: the cluster of "
        "TF_CONFIG, the table shared out by rows; tpu: the TPU that TPU_NAME names, or the local one; ascend: one process per "
        "Huawei NPU, as the plugin's environment variables describe. tpu and ascend leave out a last batch that is not full, and "
        "the loss in ascend's history is that of the chief's rows",
        kind=_strategy,
        choices=("default", "mirrored", "multi_worker", "parameter_server", "tpu", "ascend"),
    )
    precision: str = option(
        "float32",
        "with strategy ascend; mixed: float16 where the plugin considers it safe, with a scaled loss",
        choices=("float32", "mixed"),
    )
    loss_scale: LossScale = option(
        None,
        "with precision mixed: a fixed loss scale, or dynamic",
        kind=number_or("dynamic", float),
        metavar="X",
        unset="dynamic",
    )
    optimizer_state: Optional[bool] = option(
        None,
        "continue with the optimizer state in the weights file: if true, state that is missing or does not fit is an error; if "
        "false, it is ignored; with warm-up or decay, steps are counted from 0 again; only with strategy default",
        kind=bool,
        unset="when there is one that fits, which a line on stderr says",
    )
    save_optimizer_state: bool = option(
        False, "write the optimizer's state into model.weights.h5 too; only with strategy default"
    )
    quiet: bool = option(False, "show no progress")

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        if self.weights is not None:
            object.__setattr__(self, "weights", os.fspath(self.weights))
        super().__post_init__()
        if self.profile is not None:
            first, last = self.profile
            if not 1 <= first <= last:
                raise UsageError(f"profile must be a first and a last step, 1 <= first <= last. Received {first}, {last}")
            object.__setattr__(self, "profile", (first, last))
        for source in ("weights", "config"):
            given = [name for name in ARCHITECTURE if getattr(self, name) is not None]
            if getattr(self, source) is not None and given:
                raise UsageError(f"{source} must come without {given[0]}: it says what the architecture is. Received both")
        if self.weights is not None and self.config is not None:
            raise UsageError("weights must come without config, they carry their own. Received both")
        if self.optimizer_state and self.weights is None:
            raise UsageError("optimizer_state needs weights, the file that holds it. Received no weights")

    @property
    def scheduled(self) -> bool:
        """Whether the learning rates change over the steps."""
        return bool(self.warmup_steps or self.decay)

    def to_json(self) -> str:
        """One line of JSON with every option."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "FitOptions":
        """The options that `to_json` wrote.

        Args:
          text: the line of JSON.
        """
        fields = json.loads(text)
        if fields["config"] is not None:
            fields["config"] = DLRMConfig(**fields["config"])
        return cls(**fields)


class ResolvedOptions(FitOptions):
    """The options of a run, with the recipe's values in place: what may be None in `FitOptions` is a value here.

    Those of the architecture may be None still, as may `dense_optimizer` and its rate. Rates and `warmup_steps` are final.
    """

    optimizer: str
    learning_rate: float
    momentum: float
    warmup_steps: int
    decay: float
    plateau_factor: float
    plateau_patience: int
    epochs: int
    batch_size: int
    validation_share: float
    validations_per_epoch: int
    patience: int
    l2: float
    dropout: float
    label_smoothing: float
    clip_norm: float
    reset_table_each_epoch: bool
    table_init_scale: float


FitOptions.__doc__ = (
    (FitOptions.__doc__ or "")
    + "\n    Attributes:\n"
    + "".join(f"      {field.name}: {field.metadata['help']}.\n" for field in dataclasses.fields(FitOptions))
)
