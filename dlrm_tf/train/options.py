"""`FitOptions`: every option of `fit`, which are the flags of `dlrm-tf train`. Loads without TensorFlow."""

import argparse
import dataclasses
import json
import os
import warnings
from typing import Any, Callable, Optional, Union

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import UsageError

# Name in version 0.1.0 -> name now.
_RENAMED_STRATEGIES = {"one": "default"}


def _option(
    default: Any,
    text: str,
    *,
    kind: Optional[Callable] = None,
    choices: Optional[tuple] = None,
    metavar: Optional[str] = None,
    unset: Optional[str] = None,
    flag: Optional[str] = None,
) -> Any:
    """A field with what its flag needs.

    Args:
      default: the value when the option is not given.
      text: what the option does.
      kind: makes the value of a flag's text; by default the type of `default`.
      choices: the values there are.
      metavar: stands for the value in the flag's help.
      unset: what happens by default, where `default` is None.
      flag: another name of the flag than the field's.
    """
    details = {"kind": kind or type(default), "choices": choices, "metavar": metavar, "flag": flag}
    return dataclasses.field(default=default, metadata={"help": f"{text} (default: {unset or default})", **details})


def _strategy(name: str) -> str:
    if name in _RENAMED_STRATEGIES:
        warnings.warn(f"strategy {name!r} is called {_RENAMED_STRATEGIES[name]!r} now", DeprecationWarning, stacklevel=4)
    return _RENAMED_STRATEGIES.get(name, name)


def _steps(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted FIRST:LAST, such as 100:110. Received {text!r}")
    return int(first), int(last)


def _loss_scale(text: str) -> Union[float, str]:
    try:
        return text if text == "dynamic" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted a number or dynamic. Received {text!r}") from None


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How `fit` trains. Every field is a keyword argument of `fit` and a flag of `dlrm-tf train`.

    Raises:
      UsageError: a value out of range, or options that exclude each other; the message names the option.
    """

    weights: Optional[str] = _option(
        None, "a .weights.h5 to start from; it must belong to this data", kind=str, metavar="FILE", unset="a new model"
    )
    config: Optional[DLRMConfig] = _option(
        None,
        "architecture of a new model: a DLRMConfig, on the command line a JSON file",
        kind=str,
        metavar="FILE",
        unset="Criteo Kaggle's MLPs at the data's vocabulary sizes",
    )
    optimizer: str = _option(
        "adagrad",
        "optimizer of the embedding table, and of the MLPs unless dense_optimizer names another",
        choices=("sgd", "adagrad", "rowwise_adagrad", "lazy_adam"),
    )
    learning_rate: Optional[float] = _option(
        None, "learning rate of the optimizer", kind=float, metavar="RATE", unset="the optimizer's own"
    )
    momentum: float = _option(0.0, "momentum of the MLPs, with optimizer sgd; the table has none", metavar="M")
    dense_optimizer: Optional[str] = _option(
        None, "another optimizer for the MLPs", kind=str, choices=("sgd", "adagrad", "adam"), unset="the table's"
    )
    dense_learning_rate: Optional[float] = _option(
        None, "learning rate of dense_optimizer", kind=float, metavar="RATE", unset="learning_rate"
    )
    warmup_steps: int = _option(0, "steps over which the learning rates rise linearly to their value", metavar="N")
    decay: float = _option(
        0.0, "last part of all steps, 0 to 1, over which the learning rates fall linearly to 0", metavar="PART"
    )
    epochs: int = _option(1, "passes over the training rows, those before a resume included", metavar="N")
    batch_size: int = _option(2048, "rows per step, of all devices and processes together", metavar="ROWS")
    seed: int = _option(0, "seed of the initial weights and of the order of the rows", metavar="N")
    resume: bool = _option(False, "continue from the run's newest checkpoint; start from the beginning when there is none")
    checkpoint_steps: Optional[int] = _option(
        None, "write a checkpoint every N steps too", kind=int, metavar="N", unset="only at the end of an epoch"
    )
    steps_per_execution: int = _option(
        1,
        "steps run without returning to Python, which saves time with small batches; progress, checkpoints and the check for "
        "NaN then come once in N steps; 1 with strategy mirrored and multi_worker",
        metavar="N",
    )
    validate: bool = _option(True, "measure the test split after every epoch", flag="--validation")
    profile: Optional[tuple[int, int]] = _option(
        None,
        "first and last step, from 1, to record TensorFlow's profile of, into tensorboard/; not with strategy parameter_server",
        kind=_steps,
        metavar="FIRST:LAST",
        unset="no profile",
    )
    strategy: str = _option(
        "default",
        "devices and processes that train together; only the chief process writes. default: one device of this process; "
        "mirrored: all GPUs of this machine; multi_worker: the workers of TF_CONFIG, in step; parameter_server: the cluster of "
        "TF_CONFIG, the table shared out by rows; tpu: the TPU that TPU_NAME names, or the local one; ascend: one process per "
        "Huawei NPU, as the plugin's environment variables describe. tpu and ascend leave out a last batch that is not full, and "
        "the loss in ascend's history is that of the chief's rows",
        kind=_strategy,
        choices=("default", "mirrored", "multi_worker", "parameter_server", "tpu", "ascend"),
    )
    precision: str = _option(
        "float32",
        "with strategy ascend; mixed: float16 where the plugin considers it safe, with a scaled loss",
        choices=("float32", "mixed"),
    )
    loss_scale: Union[None, float, str] = _option(
        None, "with precision mixed: a fixed loss scale, or dynamic", kind=_loss_scale, metavar="X", unset="dynamic"
    )
    optimizer_state: Optional[bool] = _option(
        None,
        "continue with the optimizer state in the weights file: if true, state that is missing or does not fit is an error; if "
        "false, it is ignored; with warm-up or decay, steps are counted from 0 again; only with strategy default",
        kind=bool,
        unset="when there is one that fits, which a line on stderr says",
    )
    save_optimizer_state: bool = _option(
        False, "write the optimizer's state into model.weights.h5 too; only with strategy default"
    )
    quiet: bool = _option(False, "show no progress")

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        if self.weights is not None:
            object.__setattr__(self, "weights", os.fspath(self.weights))
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value is not None and value not in choices:
                raise UsageError(f"{field.name} must be one of {', '.join(choices)}. Received {value!r}")
        for name in ("epochs", "batch_size", "steps_per_execution", "checkpoint_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be positive. Received {value}")
        if not 0 <= self.decay <= 1:
            raise UsageError(f"decay must be between 0 and 1. Received {self.decay}")
        if self.profile is not None:
            first, last = self.profile
            if not 1 <= first <= last:
                raise UsageError(f"profile must be a first and a last step, 1 <= first <= last. Received {first}, {last}")
            object.__setattr__(self, "profile", (first, last))
        if self.dense_learning_rate is not None and self.dense_optimizer is None:
            raise UsageError(f"dense_learning_rate needs dense_optimizer. Received {self.dense_learning_rate} without one")
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


FitOptions.__doc__ = (
    (FitOptions.__doc__ or "")
    + "\n    Attributes:\n"
    + "".join(f"      {field.name}: {field.metadata['help']}.\n" for field in dataclasses.fields(FitOptions))
)
