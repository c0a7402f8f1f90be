"""Recipes: small JSON files that hold a training's option values, where they come from, and what to expect of them.

A file is an object with `title`, `source`, `expected` (figures, each with the data it belongs to), `options` (fields of
`FitOptions`) and, where wanted:

* `rules`: what `"auto"` means and how rates follow the batch (`BatchRule`, `EpochRule`, `RateRule`, `ValidationRule`);
* `few_rows`: `{"below": rows, "options": {...}}`, options that replace those of `options` where there are fewer training rows;
* `fine_tune`: options that replace those of `options` in a training that starts from weights;
* `without_validation`: the same for a training without validation rows;
* `by_strategy`: the same for some strategies, by name.

The package's own recipes are in `dlrm_tf/train/recipes/`. Loads without TensorFlow.
"""

import dataclasses
import json
import math
import os
from typing import Any

from dlrm_tf.errors import DataError

_FOLDER = os.path.join(os.path.dirname(__file__), "recipes")
RECIPES = ("default", "mindspore", "bars")
SCALINGS = {"none": lambda ratio: 1.0, "sqrt": math.sqrt, "linear": float}


@dataclasses.dataclass(frozen=True)
class BatchRule:
    """Batch size `"auto"`: the largest power of two that leaves at least `steps_per_epoch` steps an epoch.

    Attributes:
      min: smallest batch size, a power of two; taken also where it leaves fewer steps.
      max: largest batch size, a power of two.
      steps_per_epoch: steps an epoch should have.
    """

    min: int
    max: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        powers = all(isinstance(n, int) and n > 0 and n & (n - 1) == 0 for n in (self.min, self.max))
        if not powers or self.min > self.max or self.steps_per_epoch < 1:
            raise ValueError(f"wanted powers of two min <= max and steps_per_epoch >= 1. Received {dataclasses.asdict(self)}")

    def batch_size(self, rows: int) -> int:
        """The batch size for an epoch of `rows` rows."""
        size = self.min
        while size * 2 <= self.max and rows >= size * 2 * self.steps_per_epoch:
            size *= 2
        return size


@dataclasses.dataclass(frozen=True)
class EpochRule:
    """Epochs `"auto"`: as few as make `steps` steps together.

    Attributes:
      steps: steps that a training should have.
      max: the most epochs: more of them overfit.
    """

    steps: int
    max: int

    def __post_init__(self) -> None:
        if min(self.steps, self.max) < 1:
            raise ValueError(f"wanted steps >= 1 and max >= 1. Received {dataclasses.asdict(self)}")

    def epochs(self, batches: int) -> int:
        """Epochs of a training with `batches` steps an epoch."""
        return min(-(-self.steps // batches), self.max)


@dataclasses.dataclass(frozen=True)
class RateRule:
    """How the recipe's learning rates follow the batch size.

    Attributes:
      base_batch: the batch size that the recipe's rates are for.
      scaling: `"none"`; `"sqrt"`, times the root of `batch_size / base_batch`; `"linear"`, times that ratio.
    """

    base_batch: int
    scaling: str

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS or self.base_batch < 1:
            raise ValueError(f"wanted base_batch >= 1, scaling {', '.join(SCALINGS)}. Received {dataclasses.asdict(self)}")

    def factor(self, batch_size: int) -> float:
        """What the rates are multiplied by for a batch size."""
        return SCALINGS[self.scaling](batch_size / self.base_batch)


@dataclasses.dataclass(frozen=True)
class ValidationRule:
    """Validation share `"auto"`: a share of the training rows, but not more rows than are needed to measure.

    Attributes:
      share: of the training rows, 0 to 1.
      most_rows: no more rows than this.
      least_rows: where the share is fewer rows than this there is no validation: so few rows choose by chance.
    """

    share: float
    most_rows: int
    least_rows: int

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or min(self.most_rows, self.least_rows) < 0:
            raise ValueError(f"wanted 0 <= share < 1 and numbers of rows. Received {dataclasses.asdict(self)}")

    def validation_rows(self, rows: int) -> int:
        """Validation rows of `rows` training rows."""
        wanted = int(rows * self.share)
        return min(wanted, self.most_rows) if wanted >= self.least_rows else 0


_RULES: dict[str, Any] = {
    "batch_size": BatchRule,
    "epochs": EpochRule,
    "learning_rate": RateRule,
    "validation_share": ValidationRule,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One recipe file.

    Attributes:
      name: as it was asked for.
      title: one line.
      source: where its values come from.
      expected: figures, each a dict with the `data` it belongs to.
      options: values of fields of `FitOptions`.
      few_rows: fewer training rows than this, and the options that then differ.
      fine_tune: those that differ in a training that starts from weights.
      without_validation: those that differ where there are no validation rows.
      by_strategy: by the name of a strategy, those that differ with it.
      rules: by the option's name what `"auto"` means, the default recipe's rule where the file has none; of `learning_rate` how
        rates follow the batch size, absent where they don't.
    """

    name: str
    title: str
    source: str
    expected: list[dict[str, Any]]
    options: dict[str, Any]
    few_rows: tuple[int, dict[str, Any]]
    fine_tune: dict[str, Any]
    without_validation: dict[str, Any]
    by_strategy: dict[str, dict[str, Any]]
    rules: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> "Recipe":
        """A recipe of the package, or one's own.

        Args:
          name: one of `RECIPES`, or the path of a JSON file.

        Raises:
          DataError: neither, or a file that is no recipe; the message names what is wrong. Names and values of options are
            checked where they are used, by `FitOptions`.
        """
        path = os.path.join(_FOLDER, f"{name}.json") if name in RECIPES else name
        try:
            with open(path, encoding="utf-8") as file:
                fields = json.loads(file.read(1 << 20))
        except (FileNotFoundError, IsADirectoryError) as e:
            raise DataError(f"recipe: wanted {', '.join(RECIPES)} or a JSON file. Received {name!r}") from e
        except (ValueError, RecursionError) as e:
            raise DataError(f"{path}: wanted a recipe, which is JSON. Received text that is not ({e})") from e
        wanted = {"title": str, "source": str, "expected": list, "options": dict}
        may = {"rules": dict, "few_rows": dict, "fine_tune": dict, "without_validation": dict, "by_strategy": dict}
        if not isinstance(fields, dict) or set(wanted) - set(fields) or set(fields) - set(wanted) - set(may):
            received = ", ".join(map(repr, sorted(fields)))[:200] if isinstance(fields, dict) else type(fields).__name__
            raise DataError(
                f"{path}: wanted an object of {', '.join(wanted)} and perhaps {', '.join(may)}. Received {received or 'nothing'}"
            )
        for key, kind in {**wanted, **may}.items():
            if not isinstance(fields.setdefault(key, kind()), kind):
                raise DataError(f"{path}: {key} must be a JSON {kind.__name__}. Received {fields[key]!r}")
        few = fields["few_rows"] or {"below": 0, "options": {}}
        if set(few) != {"below", "options"} or not isinstance(few["below"], int) or not isinstance(few["options"], dict):
            raise DataError(f"{path}: few_rows: wanted below, a number of rows, and options. Received {few!r}"[:300])
        fields["few_rows"] = (few["below"], few["options"])
        rules = {} if name == "default" else {key: rule for key, rule in DEFAULT.rules.items() if key != "learning_rate"}
        for key, value in fields.pop("rules").items():
            if key not in _RULES:
                raise DataError(f"{path}: wanted rules of {', '.join(_RULES)}. Received one of {key!r}")
            try:
                rules[key] = _RULES[key](**value)
            except (TypeError, ValueError) as e:
                raise DataError(f"{path}: rule of {key}: {e}") from e
        return cls(name, **fields, rules=rules)


DEFAULT = Recipe.read("default")
