"""Reads the vocabulary upstream's preprocessing leaves behind (`cat_count_dict.pkl`), without executing code from the pickle.

Upstream: MindSpore models, research/recommend/dlrm/src/preprocess_data.py: a dict of a `defaultdict(int)` for each column,
keys in id order, values are counts.
"""

import pickle
from collections.abc import Sequence
from typing import Any, ClassVar

from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError
from dlrm_tf.files import StrPath

_INT = object()  # what the file's `int` becomes: it can only stand as a defaultdict's factory
_ADMITTED = {
    ("collections", "defaultdict"): dict,
    ("builtins", "int"): _INT,
    # As pickles of Python 2's protocols name it.
    ("__builtin__", "int"): _INT,
    ("__builtin__", "long"): _INT,
}
# All that dicts, numbers and strings need. No lists and no sets, and tuples only as arguments: from a few bytes of nested
# tuples a pickle makes a key that takes hours to hash.
_OPCODES = (
    *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("GLOBAL", "STACK_GLOBAL", "TUPLE", "TUPLE1", "REDUCE"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
)


class _CountsUnpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, whose opcodes can be restricted, unlike those of the one in C."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise DataError(f"refused: it asks for {module}.{name}; upstream's counts hold dict, defaultdict, int and str only")
        return _ADMITTED[module, name]

    def _load_tuple(self) -> None:
        pickle._Unpickler.load_tuple(self)  # type: ignore[attr-defined]
        self._check_arguments()

    def _load_tuple1(self) -> None:
        pickle._Unpickler.load_tuple1(self)  # type: ignore[attr-defined]
        self._check_arguments()

    def _check_arguments(self) -> None:
        if self.stack[-1] not in ((), (_INT,)):
            raise DataError("refused: it holds a tuple; upstream's counts hold dict, defaultdict, int and str only")

    def _load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if function is not dict or not isinstance(arguments, tuple):
            raise DataError("refused: it calls something; upstream's counts hold dict, defaultdict, int and str only")
        self.stack[-1] = {}

    dispatch.update({pickle.TUPLE[0]: _load_tuple, pickle.TUPLE1[0]: _load_tuple1, pickle.REDUCE[0]: _load_reduce})


def load_counts(path: StrPath, names: Sequence[str]) -> Vocabulary:
    """The vocabulary in upstream's `cat_count_dict.pkl`.

    Args:
      path: the pickle.
      names: names of the categorical features, in the order of the columns.

    Raises:
      DataError: not such a pickle; it holds anything but dict, defaultdict, int and str; or other columns.
    """
    with open(path, "rb") as file:
        try:
            counts = _CountsUnpickler(file).load()
        except DataError as e:
            raise DataError(f"{path}: {e}") from None
        except KeyError as e:  # of the dispatch table
            raise DataError(f"{path}: not a pickle of upstream's counts (it has pickle's opcode {e})") from None
        except Exception as e:  # a damaged pickle can raise any exception
            raise DataError(f"{path}: not a pickle of upstream's counts, or damaged ({type(e).__name__}: {e})") from None
    if not isinstance(counts, dict) or not all(isinstance(column, dict) for column in counts.values()):
        raise DataError(f"{path}: wanted a dict of a dict for each column. Received {type(counts).__name__}")
    if len(counts) != len(names):
        raise DataError(f"{path}: wanted {len(names)} columns. Received {len(counts)}")
    numbered = all(isinstance(column, int) for column in counts)
    columns = [counts[column] for column in sorted(counts)] if numbered else list(counts.values())
    for name, column in zip(names, columns):
        wrong = next((key for key in column if not isinstance(key, str)), None)
        if wrong is not None:
            raise DataError(f"{path}: {name}: wanted keys of type str. Received one of type {type(wrong).__name__}")
    return Vocabulary.from_keys({name: list(column) for name, column in zip(names, columns)})
