"""KeyTable against Vocabulary.lookup, feature by feature."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf.data.key_table import KeyTable
from dlrm_tf.data.vocabulary import Vocabulary

KEYS = st.sampled_from(["", "00000000", "0000000a", "ffffffff", "FFFFFFFF", "deadbeef", "abc", "a longer key", "ü", "0000000"])


@settings(deadline=None)
@given(
    columns=st.lists(st.lists(KEYS, unique=True, max_size=6), min_size=1, max_size=4),
    rows=st.lists(st.lists(KEYS, min_size=4, max_size=4), max_size=12),
)
def test_the_same_ids_as_the_vocabulary(columns, rows):
    vocabulary = Vocabulary.from_keys({f"f{i}": keys for i, keys in enumerate(columns)})
    rows = np.array([row[: len(columns)] for row in rows], object).reshape(-1, len(columns))
    wanted = [vocabulary.lookup(name, rows[:, f]) for f, name in enumerate(vocabulary.names)]
    found = KeyTable(vocabulary).ids(rows.reshape(-1).tolist())
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, np.stack(wanted, axis=1))
