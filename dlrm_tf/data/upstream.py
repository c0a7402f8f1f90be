"""Reads the vocabulary upstream's preprocessing leaves behind (`cat_count_dict.pkl`), without running what a pickle asks for.

Upstream: MindSpore models, research/recommend/dlrm/src/preprocess_data.py: a dict of a `defaultdict(int)` for each column,
keys in id order, values are counts.
"""

import collections
import pickle

from dlrm_tf.data.vocabulary import Vocabulary
from dlrm_tf.errors import DataError

_ADMITTED = {
    ("collections", "defaultdict"): collections.defaultdict,
    ("builtins", "dict"): dict,
    ("builtins", "int"): int,
    ("builtins", "str"): str,
    # Names of the same in pickles of Python 2's protocols.
    ("__builtin__", "dict"): dict,
    ("__builtin__", "int"): int,
    ("__builtin__", "long"): int,
    ("__builtin__", "str"): str,
}


class _CountsUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ADMITTED:
            raise DataError(f"refused: it asks for {module}.{name}; upstream's counts hold dict, defaultdict, int and str only")
        return _ADMITTED[module, name]

    def persistent_load(self, pid):
        raise DataError("refused: it refers to objects outside of itself")


def load_counts(path: str, names: "tuple[str, ...]") -> Vocabulary:
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
        except Exception as e:  # a damaged pickle raises whatever its bytes happen to hit
            raise DataError(f"{path}: not a pickle of upstream's counts, or damaged ({type(e).__name__}: {e})") from None
    if not isinstance(counts, dict) or not all(isinstance(column, dict) for column in counts.values()):
        raise DataError(f"{path}: wanted a dict of a dict for each column, got {type(counts).__name__}")
    if len(counts) != len(names):
        raise DataError(f"{path}: wanted {len(names)} columns, got {len(counts)}")
    numbered = all(isinstance(column, int) for column in counts)
    columns = [counts[column] for column in sorted(counts)] if numbered else list(counts.values())
    for name, column in zip(names, columns):
        wrong = next((key for key in column if not isinstance(key, str)), None)
        if wrong is not None:
            raise DataError(f"{path}: {name} has the key {wrong!r}, wanted strings")
    return Vocabulary.from_keys({name: list(column) for name, column in zip(names, columns)})
