"""Errors a user can act on: one line, "WHERE: wanted WHAT. Received VALUE", and what to do where it helps.

The command line prints them as that line and exits with 1; `UsageError` exits with 2.
"""

import importlib
import os
import shlex
from typing import Any


class DLRMError(Exception):
    """Base of every error that is about the user's input or machine, not about a defect of dlrm_tf."""


class UsageError(DLRMError):
    """The command was called wrongly: an option's value, or options that exclude each other (exit code 2)."""


class DataError(DLRMError, ValueError):
    """A data file (TSV, records, manifest, vocabulary) is not what it should be."""


class CheckpointError(DLRMError, ValueError):
    """A checkpoint or weights file is damaged, foreign, or does not fit the model."""


class ServingError(DLRMError):
    """A model server could not be started or reached, or answered with an error."""


class AscendError(DLRMError):
    """The Ascend plugin, its environment or the NPU is not ready for what was asked."""


class MissingExtraError(DLRMError, ImportError):
    """A package of an optional group is not installed."""


def reason(error: BaseException) -> str:
    """An exception of another library as a short text on one line; what a damaged file put into it may be long or unprintable."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def install_command(extra: str = "") -> str:
    """The command that installs what dlrm_tf needs, whether it runs from a checkout or was installed from a wheel.

    Args:
      extra: name of an optional group in pyproject.toml, for example `"report"`; empty: what every use needs.
    """
    import importlib.metadata  # only for the message: it takes 25 ms, and every module imports this one

    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.exists(os.path.join(checkout, "pyproject.toml")):
        return "pip install " + shlex.quote(checkout + (f"[{extra}]" if extra else ""))
    # The packages themselves, not dlrm_tf by name: on an index the name may be a stranger's.
    wanted = []
    for requirement in importlib.metadata.requires("dlrm_tf") or ():
        text, _, of = requirement.partition("extra == ")
        if of.strip("\"'") == extra:
            wanted.append(shlex.quote(text.rstrip(" ;")))
    return " ".join(["pip install", *wanted])


def require(module: str, extra: str) -> Any:
    """Imports `module`, or says how to install the extra of dlrm_tf that brings it.

    Args:
      module: dotted module name, for example `"matplotlib"`.
      extra: name of the group in pyproject.toml, for example `"report"`.

    Returns:
      The module.

    Raises:
      MissingExtraError: `module` itself is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is not None and not module.startswith(e.name):
            raise
        raise MissingExtraError(f"{module} is not installed: {install_command(extra)}") from e
