"""Categories from Arrow's columns: straight from their buffers, and of a dictionary once a distinct value."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

from dlrm_tf.data.arrow_numbers import codes_of
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.bag_column import WEIGHT, BagColumn, find_marks, split_fields
from dlrm_tf.data.coded_keys import CodedKeys
from dlrm_tf.data.features import LARGEST
from dlrm_tf.data.key_column import PAD, KeyColumn, keys_at
from dlrm_tf.errors import DataError, require

TEXT_BYTES = 256 << 20
# A dictionary of the texts costs less than Python objects for so large a share of keys that are not hex digits.
_ODD_SHARE = 1 / 8
# Of a larger dictionary (it may have the keys of all pieces), only those of this piece are looked at.
_DICTIONARY_SHARE = 4


def arrow_keys(array: Any, seen: Optional["Seen"] = None) -> Union[KeyColumn, CodedKeys]:
    """Reads a column with one key a row.

    Args:
      array: a `pyarrow.Array` of texts (bytes as they are), whole numbers (their decimal digits), nulls, or a dictionary of
        these.
      seen: the column's dictionary in the piece before.
    """
    pa = require("pyarrow", "arrow")
    if pa.types.is_dictionary(array.type):
        return _of_dictionary(array, seen)
    if pa.types.is_null(array.type):
        return CodedKeys(_with_missing(KeyColumn(np.empty(0, np.uint32), np.empty(0, bool), [])), np.zeros(len(array), np.int8))
    if pa.types.is_integer(array.type):
        return _of_dictionary(array.dictionary_encode())
    texts, starts, ends = _fields(array)
    sample = slice(0, 1024)
    few = keys_at(texts, starts[sample], ends[sample])
    if len(few.odd) > len(few.values) * _ODD_SHARE:
        return _of_dictionary(_plain(array).dictionary_encode())
    return keys_at(texts, starts, ends)


def arrow_bags(array: Any, bag: Bag, weights: Optional[Any] = None) -> tuple[BagColumn, dict[int, str]]:
    """Reads a column of bags.

    Args:
      array: a `pyarrow.Array` of lists of keys, of texts as they stand in a log, or of whole numbers, each a bag of one key. Null
        and an empty list are the one key ''.
      bag: how texts are read.
      weights: beside lists of keys of a bag with weights, the lists of their weights.

    Returns:
      The keys, and by row what is wrong with its weights.
    """
    pa = require("pyarrow", "arrow")
    kinds = pa.types
    if is_list(array.type):
        return _of_lists(array, bag, weights)
    if kinds.is_dictionary(array.type) and not kinds.is_integer(array.type.value_type):
        codes = codes_of(array)
        distinct, wrong = _split(pa.concat_arrays([_plain(array.dictionary), pa.nulls(1, _plain(array.dictionary).type)]), bag)
        faults = {row: wrong[code] for row, code in enumerate(codes.tolist()) if code in wrong} if wrong else {}
        return distinct.take(codes), faults
    if kinds.is_dictionary(array.type) or kinds.is_integer(array.type) or kinds.is_null(array.type):
        return _singles(_expanded(arrow_keys(array)), bag), {}
    return _split(array, bag)


def is_text(kind: Any) -> bool:
    """Whether a type of Arrow is one of texts or bytes."""
    kinds = require("pyarrow", "arrow").types
    checks = (
        *(kinds.is_string, kinds.is_large_string, kinds.is_string_view),
        *(kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary),
    )
    return any(check(kind) for check in checks) and not isinstance(kind, require("pyarrow", "arrow").BaseExtensionType)


def is_list(kind: Any) -> bool:
    """Whether a type of Arrow is one of lists."""
    kinds = require("pyarrow", "arrow").types
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))


def _of_dictionary(array: Any, seen: Optional["Seen"] = None) -> CodedKeys:
    if len(array.dictionary) > _DICTIONARY_SHARE * len(
        array
    ):  # of a piece of a column whose dictionary has the keys of all pieces
        used = array.indices.dictionary_encode()
        array = require("pyarrow", "arrow").DictionaryArray.from_arrays(used.indices, array.dictionary.take(used.dictionary))
    known = seen.keys(array.dictionary) if seen is not None else None
    if known is None:
        known = _with_missing(_distinct(array.dictionary))
        if seen is not None:
            seen.last = array.dictionary, known
    return CodedKeys(known, codes_of(array))


class Seen:
    """The dictionary that a column had in the piece before: most pieces of a row group have the same one.

    Attributes:
      last: it and its keys, replaced as one, so that threads may share it.
    """

    last: Optional[tuple[Any, KeyColumn]] = None

    def keys(self, dictionary: Any) -> Optional[KeyColumn]:
        """The keys of `dictionary`, where it is the one before."""
        last = self.last
        return last[1] if last is not None and last[0].equals(dictionary) else None


def _distinct(dictionary: Any) -> KeyColumn:
    return keys_at(*_fields(dictionary.cast("string") if dictionary.type in _integers() else dictionary))


def _integers() -> list[Any]:
    pa = require("pyarrow", "arrow")
    return [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]


def _with_missing(keys: KeyColumn) -> KeyColumn:
    """The keys, and '' after them."""
    return KeyColumn(np.append(keys.values, np.uint32(0)), np.append(keys.empty, True), keys.odd)


def _expanded(keys: Union[KeyColumn, CodedKeys]) -> KeyColumn:
    return keys.expand() if isinstance(keys, CodedKeys) else keys


def _plain(array: Any) -> Any:
    """Texts in one of the two layouts of offsets and bytes."""
    pa = require("pyarrow", "arrow")
    if array.type in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary()):
        return array
    return without_views(array).cast("large_binary")


def without_views(array: Any) -> Any:
    """A column of Arrow's view types, which few functions take, as one of bytes; any other column as it is.

    Raises:
      DataError: its texts have more than `TEXT_BYTES`: many views may be of the same bytes.
    """
    kinds = require("pyarrow", "arrow").types
    if not (kinds.is_string_view(array.type) or kinds.is_binary_view(array.type)):
        return array
    lengths = np.frombuffer(array.buffers()[1], np.int32)[4 * array.offset :: 4][: len(array)]
    size = int(lengths.sum(dtype=np.int64))
    if size > TEXT_BYTES:
        raise DataError(f"wanted texts of at most {TEXT_BYTES >> 20} MB in {len(array):,} rows. Received {size:,} bytes")
    return array.cast("large_binary")


def without_marked(array: Any, markers: Sequence[str]) -> Any:
    """A column with null in place of the texts that are one of `markers`; of other types as it is, lists too."""
    pa = require("pyarrow", "arrow")
    compute = require("pyarrow.compute", "arrow")
    kinds = pa.types
    if kinds.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, without_marked(array.dictionary, markers))
    if not is_text(array.type):
        return array
    texts = _plain(array)
    marked = compute.is_in(texts.cast("large_binary"), value_set=pa.array([mark.encode() for mark in markers], "large_binary"))
    return compute.if_else(marked, pa.scalar(None, texts.type), texts)


def _fields(array: Any) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Texts as `(their bytes with PAD around them, start of each, end of each)`; null is an empty one."""
    array = _plain(array)
    pa = require("pyarrow", "arrow")
    _, offsets, content = array.buffers()
    wide = array.type in (pa.large_string(), pa.large_binary())
    if not len(array):
        return bytes(2 * PAD), np.empty(0, np.int64), np.empty(0, np.int64)
    at = np.frombuffer(offsets, np.int64 if wide else np.int32, len(array) + 1, array.offset * (8 if wide else 4))
    first, last = int(at[0]), int(at[-1])
    text = b"".join((bytes(PAD), memoryview(content)[first:last] if content is not None else b"", bytes(PAD)))
    at = at - (first - PAD)
    starts, ends = at[:-1], at[1:]
    if array.null_count:
        ends = np.where(array.is_null().to_numpy(zero_copy_only=False), starts, ends)
    return text, starts, ends


def _split(array: Any, bag: Bag) -> tuple[BagColumn, dict[int, str]]:
    text, starts, ends = _fields(array)
    return split_fields(text, find_marks(np.frombuffer(text, np.uint8), [bag]), starts, ends, bag)


def _singles(keys: KeyColumn, bag: Bag) -> BagColumn:
    rows = len(keys.values)
    weights = None if bag.weight_separator is None else np.ones(rows, np.float32)
    return BagColumn(keys, np.ones(rows, np.int64), weights, np.zeros(rows, bool))


def _of_lists(array: Any, bag: Bag, weights: Optional[Any]) -> tuple[BagColumn, dict[int, str]]:
    pa = require("pyarrow", "arrow")
    given = _lengths(array)
    lengths = np.clip(given, 1, bag.max_keys)
    row = np.repeat(np.arange(len(given)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    index = (np.cumsum(given) - given)[row] + place
    no_key = given[row] == 0
    keys = _expanded(arrow_keys(array.flatten().take(pa.array(index, mask=no_key))))
    if bag.weight_separator is None:
        return BagColumn(keys, lengths, None, given > bag.max_keys), {}
    if weights is None:
        raise AssertionError("the schema was checked")
    faults: dict[int, str] = {}
    for at in np.flatnonzero(_lengths(weights) != given).tolist():
        received = "none" if not weights[at].is_valid else int(_lengths(weights)[at])
        wanted = f"a list of {given[at]} weights beside the list of keys" if given[at] else "no weights for an empty list of keys"
        faults[at] = f"wanted {wanted}. Received {received}"
    known = ~no_key & ~np.isin(row, list(faults))
    numbers = np.ones(len(row), np.float64)
    flat = weights.flatten().cast("float64")
    start = np.cumsum(_lengths(weights)) - _lengths(weights)
    taken = flat.take(pa.array((start[row] + place)[known]))
    numbers[known] = taken.to_numpy(zero_copy_only=False)  # null becomes NaN
    for at in np.flatnonzero(~((numbers >= 0) & (numbers <= LARGEST)))[::-1].tolist():  # a row's first one is set last
        faults[int(row[at])] = f"wanted {WEIGHT}. Received {numbers[at]}"
    return BagColumn(keys, lengths, numbers.astype(np.float32), given > bag.max_keys), faults


def _lengths(array: Any) -> np.ndarray:
    """Items of each list, int64; 0 of null."""
    compute = require("pyarrow.compute", "arrow")
    lengths: np.ndarray = compute.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths
