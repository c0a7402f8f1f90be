"""KeyIndex equals a dict, whatever is asked and however it grows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data.key_index import KeyIndex

# Few different keys (repetitions, hits), the extremes, and any.
keys = st.one_of(st.integers(0, 40), st.sampled_from([0, 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(keys, max_size=60), max_size=8))
def test_equals_a_dict(batches):
    index, expected = KeyIndex(), {}
    for batch in batches:
        array = np.array(batch, np.uint32)
        found = index.find(array)
        assert found.dtype == np.int32
        assert found.tolist() == [expected.get(key, -1) for key in batch]
        new = np.unique(array[found < 0])
        ids = np.arange(len(expected), len(expected) + new.size, dtype=np.int32)
        index.insert(new, ids)
        expected.update(zip(new.tolist(), ids.tolist()))
        assert len(index) == len(expected)


def test_grows_far_beyond_its_first_size():
    values = np.arange(200_000, dtype=np.uint32) * np.uint32(3)
    index = KeyIndex()
    for start in range(0, values.size, 7000):
        part = values[start : start + 7000]
        index.insert(part, np.arange(start, start + part.size, dtype=np.int32))
    assert (index.find(values) == np.arange(values.size)).all()
    assert (index.find(values + np.uint32(1)) == -1).all()


def test_keys_of_one_home_slot_do_not_hide_each_other():
    # All multiples of 2^22 whose product with the multiplier keeps the same top ten bits: one home slot in a table of 1024.
    same_home = [key for key in range(0, 2**32, 2**20 + 12345) if (key * 2654435769 % 2**32) >> 22 == 7]
    values = np.array(same_home, np.uint32)
    assert values.size > 2
    index = KeyIndex()
    index.insert(values, np.arange(values.size, dtype=np.int32))
    assert index.find(values).tolist() == list(range(values.size))
