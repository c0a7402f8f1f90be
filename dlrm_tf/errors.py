"""Errors a user can act on: one line, "WHERE: wanted WHAT. Received VALUE", and what to do where it helps.

The command line prints them as that line and exits with 1; `UsageError` exits with 2.
"""

import importlib
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any


class DLRMError(Exception):
    """Base of every error that is about the user's input or machine, not about a defect of dlrm_tf."""


class UsageError(DLRMError, ValueError):
    """The command or function was called wrongly: an option's value, or options that exclude each other (exit code 2)."""


class DataError(DLRMError, ValueError):
    """A data file (TSV, records, manifest, vocabulary) is not what it should be."""


class CheckpointError(DLRMError, ValueError):
    """A checkpoint or weights file is damaged, foreign, or does not fit the model."""


class ServingError(DLRMError):
    """A model server could not be started or reached, or answered with an error."""


class AscendError(DLRMError):
    """The Ascend plugin, its environment or the NPU is not ready for what was asked."""


class SparkError(DLRMError):
    """Spark does not start, or gave up a job."""


class MissingExtraError(DLRMError, ImportError):
    """A package of an optional group is not installed."""


def reason(error: BaseException) -> str:
    """An exception of another library as a short text on one line; what a damaged file put into it may be long or unprintable."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def pip_command(extra: str = "") -> str:
    """The command that installs the requirements of dlrm_tf or of one of its extras, wherever the package came from.

    In a source checkout it names the checkout, elsewhere the requirements that the installed package declares. It never
    names `dlrm_tf` itself: the name is not registered on PyPI, so that anybody could offer a package under it.

    Args:
      extra: name of an optional group of requirements, for example `"serving"`; `""` for the package's own.
    """
    import importlib.metadata  # takes 20 ms, which only an error should cost

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if all(os.path.isfile(os.path.join(root, name)) for name in ("setup.py", "pyproject.toml")):
        return f"python -m pip install -e {shlex.quote(f'{root}[{extra}]' if extra else root)}"
    try:
        declared = importlib.metadata.requires("dlrm_tf") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    groups: dict[str, list[str]] = {}
    for line in declared:  # 'aiohttp<4,>=3.10; extra == "serving"'
        requirement, _, group = re.sub(r"\s*(?:;|\band)\s*extra == ['\"](.+)['\"]$", r"\n\1", line).partition("\n")
        groups.setdefault(group, []).append(requirement)
    wanted = " ".join(shlex.quote(requirement) for requirement in _expanded(groups, extra))
    return f"python -m pip install {wanted}" if wanted else "install dlrm_tf again, from its source or wheel"


def _expanded(groups: dict[str, list[str]], extra: str) -> Iterator[str]:
    """The requirements of an extra, with those of the extras it names, as in `dlrm_tf[lite,report]; python_version >= "3.11"`."""
    for requirement in groups.get(extra, []):
        others = re.fullmatch(r"dlrm[-_]tf\[(.+?)\](\s*;.*)?", requirement)
        if others:
            for name in others[1].split(","):
                yield from (inner + (others[2] or "") for inner in _expanded(groups, name))
        else:
            yield requirement


def require(module: str, extra: str) -> Any:
    """Imports `module`, or says how to install what brings it.

    Args:
      module: dotted module name, for example `"matplotlib"`.
      extra: name of the optional group of requirements, for example `"report"`; `""` for the package's own.

    Raises:
      MissingExtraError: `module` itself is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is not None and not module.startswith(e.name):
            raise
        raise MissingExtraError(f"{module} is not installed: {pip_command(extra)}") from e
