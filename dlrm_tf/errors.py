"""Errors a user can act on: one line, "WHERE: wanted WHAT. Received VALUE", and what to do where it helps.

The command line prints them as that line and exits with 1; `UsageError` exits with 2.
"""


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


class MissingExtraError(DLRMError, ImportError):
    """A package of an optional group is not installed."""


def reason(error: BaseException) -> str:
    """An exception of another library as a short text on one line; what a damaged file put into it may be long or unprintable."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return f"{type(error).__name__}: {' '.join(text.split())[:200]}"


def require(module: str, extra: str):
    """Imports `module`, or says which extra of dlrm_tf brings it.

    Args:
      module: dotted module name, for example `"matplotlib"`.
      extra: name of the group in setup.py, for example `"report"`.

    Raises:
      MissingExtraError: `module` itself is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is not None and not module.startswith(e.name):
            raise
        raise MissingExtraError(f"{module} is not installed: pip install 'dlrm_tf[{extra}]'") from e
