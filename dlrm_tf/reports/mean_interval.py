"""MeanInterval: a mean over seeds and how far the true one may be from it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

# Student's t, 97.5 %, of 1 to 10 degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_Z = 1.959964


class MeanInterval(NamedTuple):
    """A mean with its 95 % interval.

    Attributes:
      mean: of the values.
      half: the interval is mean - half to mean + half; NaN for one value.
    """

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "MeanInterval":
        """Of values that are normally distributed: Student's t interval.

        Args:
          values: at least one.
        """
        n = len(values)
        mean = math.fsum(values) / n
        if n < 2:
            return cls(mean, math.nan)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
        return cls(mean, t_quantile(n - 1) * deviation / math.sqrt(n))

    def text(self, digits: int, sign: str = "") -> str:
        """Such as `0.7912 ± 0.0004`; without the interval for one value.

        Args:
          digits: behind the point.
          sign: `"+"` shows a sign also of numbers above zero.
        """
        interval = "" if math.isnan(self.half) else f" ± {self.half:.{digits}f}"
        return f"{self.mean:{sign}.{digits}f}{interval}"


def t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 0.1 %: tabulated up to 10 degrees of freedom, then Fisher's expansion.

    Args:
      freedom: degrees of freedom, >= 1. Source of the expansion: Abramowitz and Stegun, 26.7.5.
    """
    if freedom <= len(_T):
        return _T[freedom - 1]
    return _Z + (_Z**3 + _Z) / (4 * freedom) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)
