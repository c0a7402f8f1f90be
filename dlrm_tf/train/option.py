"""One option of `fit`: a dataclass field that knows what its flag needs, and how a flag's text becomes its value."""

import argparse
import dataclasses
from typing import Any, Callable, Optional, Union

from dlrm_tf.train.recipe import DEFAULT


def option(
    default: Any,
    text: str,
    *,
    kind: Optional[Callable] = None,
    choices: Optional[tuple] = None,
    metavar: Optional[str] = None,
    unset: Optional[str] = None,
    flag: Optional[str] = None,
    **more: Any,
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
      **more: further metadata of the field.
    """
    details = {"kind": kind or type(default), "choices": choices, "metavar": metavar, "flag": flag, **more}
    return dataclasses.field(default=default, metadata={"help": f"{text} (default: {unset or default})", **details})


def recipe_option(name: str, off: Any, text: str, *, kind: Callable, unset: Optional[str] = None, **details: Any) -> Any:
    """A field that the recipe sets where it is not given; its help says what the default recipe does.

    Args:
      name: the field's name.
      off: its value where the recipe has none.
      text: what the option does.
      kind: makes the value of a flag's text.
      unset: what happens where neither sets it, when `off` does not say.
      **details: `choices` and `metavar` of `option`.
    """
    value = DEFAULT.options.get(name, off)
    return option(None, text, kind=kind, unset=unset if value is None else str(value), off=off, **details)


def steps(text: str) -> tuple[int, int]:
    """Two steps of `FIRST:LAST`."""
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted FIRST:LAST, such as 100:110. Received {text!r}")
    return int(first), int(last)


def number_or(word: str, number: Callable[[str], Any]) -> Callable[[str], Any]:
    """A kind of flag: a word, or a number that `number` reads."""

    def read(text: str) -> Any:
        try:
            return text if text == word else number(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"wanted a number or {word}. Received {text!r}") from None

    return read


def units(text: str) -> tuple[int, ...]:
    """Numbers of units of an MLP's layers: `64,32`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted numbers of units, such as 64,32. Received {text!r}") from None


LossScale = Union[None, float, str]
