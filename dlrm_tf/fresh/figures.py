"""What `drift` finds: figures of each feature, of the labels and of a model's scores."""

import dataclasses
from typing import Any, Optional

# Of side A (the reference) and of side B; None where it is not known.
Pair = tuple[Optional[float], Optional[float]]


@dataclasses.dataclass(frozen=True)
class Bin:
    """A bin of the histograms that are compared: a range of numbers, or one or more keys.

    Attributes:
      name: such as "missing", "above 0, 3 to 7" or "key 68fd1e64".
      share: of A's and of B's rows, for a categorical feature of their keys.
    """

    name: str
    share: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class FeatureDrift:
    """How one feature differs between the two sides.

    Attributes:
      name: the feature.
      kind: `dense` or `categorical`.
      psi: population stability index over the bins, see `psi`.
      noise: what `psi` would be on average if nothing had changed, see `expected_noise`.
      missing: share of missing cells, of a categorical feature of the key ''.
      new: share of B's keys, counted as often as they occur, that do not occur in A's rows. None of a dense feature.
      unknown: share of B's keys, counted alike, that A's vocabulary does not have. None of a dense feature.
      keys: how many different keys occur on each side, without those out of its vocabulary. None of a dense feature.
      moved: the bins that make most of `psi`, at most three, the largest part first.
    """

    name: str
    kind: str
    psi: float
    noise: float
    missing: Pair
    new: Optional[float] = None
    unknown: Optional[float] = None
    keys: Optional[tuple[int, int]] = None
    moved: tuple[Bin, ...] = ()


@dataclasses.dataclass(frozen=True)
class ScoreDrift:
    """How a model's probabilities differ between the two sides.

    Attributes:
      rows: how many rows of each side were scored.
      psi: population stability index over the deciles of A's probabilities.
      noise: see `FeatureDrift`.
      mean: mean probability.
      calibration: mean probability divided by mean label; None without labels.
      deciles: the bins, lowest probabilities first.
    """

    rows: tuple[int, int]
    psi: float
    noise: float
    mean: tuple[float, float]
    calibration: Pair
    deciles: tuple[Bin, ...]


@dataclasses.dataclass(frozen=True)
class Drift:
    """What `drift` finds.

    Attributes:
      names: the two sides, A (the reference) and B.
      rows: of each side.
      label_rate: mean label; None where there are no labels.
      features: dense ones, then categorical ones, in the model's order.
      score: with `weights`, else None.
      skipped: requests of a log that were passed over, and why the first of them was.
    """

    names: tuple[str, str]
    rows: tuple[int, int]
    label_rate: Pair
    features: tuple[FeatureDrift, ...]
    score: Optional[ScoreDrift] = None
    skipped: tuple[int, str] = (0, "")

    def over(self, *, max_psi: Optional[float] = None, max_new: Optional[float] = None) -> list[str]:
        """What is above a bound, the largest first.

        Args:
          max_psi: of the index of a feature and of the score; None is no bound.
          max_new: of a feature's share of new keys; None is no bound.

        Returns:
          Texts such as "C3 PSI 0.3120"; empty where nothing is above.
        """
        indices = [(feature.psi, feature.name) for feature in self.features] + ([(self.score.psi, "score")] if self.score else [])
        shares = [(feature.new, feature.name) for feature in self.features if feature.new is not None]
        found = [f"{name} PSI {value:.4f}" for value, name in sorted(indices, reverse=True) if _above(value, max_psi)]
        return found + [f"{name} new keys {value:.2%}" for value, name in sorted(shares, reverse=True) if _above(value, max_new)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)


def _above(value: float, bound: Optional[float]) -> bool:
    return bound is not None and value > bound
