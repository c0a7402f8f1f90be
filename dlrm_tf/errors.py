"""Errors a user can act on: one line, "WHERE: wanted WHAT. Received VALUE", and what to do where it helps.

The command line prints them as that line and exits with 1; `UsageError` exits with 2.
"""

import importlib
import os
import re
import types


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


def pip_command(extra: str = "") -> str:
    """The command that installs what dlrm_tf, or one of its extras, needs: right wherever the package came from.

    In a source checkout it names the checkout, elsewhere the requirements that the installed package declares. It never
    names `dlrm_tf` itself: the name is not registered on PyPI, so that anybody could offer a package under it.

    Args:
      extra: name of an optional group of requirements, for example `"serving"`; `""` for the package's own.
    """
    import importlib.metadata  # takes 20 ms, which only an error should cost

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if all(os.path.isfile(os.path.join(root, name)) for name in ("setup.py", "pyproject.toml")):
        what = f"{root}[{extra}]" if extra else root
        return f"python -m pip install -e '{what}'"
    try:
        declared = importlib.metadata.requires("dlrm_tf") or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    wanted = []
    for line in declared:  # 'aiohttp<4,>=3.10; extra == "serving"'
        requirement, _, of = re.sub(r"\s*(;|\band\b)\s*extra == ['\"](.+)['\"]$", r"\n\2", line).partition("\n")
        if of == extra:
            wanted.append("'" + requirement.replace("'", '"') + "'")
    return f"python -m pip install {' '.join(wanted)}" if wanted else "install dlrm_tf again, from its source or wheel"


def require(module: str, extra: str) -> types.ModuleType:
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
