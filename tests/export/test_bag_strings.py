"""Texts of bags are split in a graph as a log is: both against Python's own reading of a field."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_tf import Bag, DLRMConfig, FeatureSpec, Vocabulary
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.export.savedmodel.bag_strings import BagStrings
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
BAGS = {"tags": Bag("|", 3, weight_separator=":"), "path": Bag("/", 2)}
SPEC = FeatureSpec.of(("x",), ("tags", "c", "path"), bags=BAGS)
CONFIG = DLRMConfig((9, 9, 9), dense_dim=1, hot_sizes=SPEC.hot_sizes, weighted=True)
SPLIT = tf.function(BagStrings(CONFIG, SPEC.categorical_names, BAGS).split, input_signature=[tf.TensorSpec([None, 3], tf.string)])

KEY = st.one_of(
    st.sampled_from(["", "a", "a:b", "deadbeef", "DEADBEEF", "00000000", "deadbeef0", "\udcff", "Zürich", " "]),
    st.text(st.characters(blacklist_characters="/|", blacklist_categories=("Cs",)), max_size=6),
)
NUMBER = st.one_of(st.floats(0, 1e6, width=32).map(repr), st.sampled_from(["0", "2", ".5", "1.", "+3", "1e-3", " 7 "]))
BAD = st.sampled_from(["", "x", "-1", "inf", "nan", "1e39", "0x1", "1,5", "--1", "\udcff"])


def fields(number):
    weight = st.one_of(st.just(""), number.map(":{}".format))
    return st.lists(st.tuples(KEY, weight).map("".join), max_size=5).map("|".join)


ROW = st.tuples(fields(st.one_of(NUMBER, NUMBER, BAD)), KEY, st.lists(KEY, max_size=4).map("/".join))


def by_hand(tags):
    """`(keys, weights)` of a field of `tags`; the weight is None where a log would refuse it."""
    result = []
    for part in tags.split("|")[:3]:
        key, mark, weight = part.rpartition(":")
        try:
            number = float(weight) if mark else 1.0
        except ValueError:
            number = -1.0
        result.append((key if mark else part, number if 0 <= number < 3.4e38 else None))
    return result


@settings(max_examples=60)
@given(st.lists(ROW, min_size=1, max_size=8))
def test_the_graph_and_the_encoder_read_alike(rows):
    texts = [[cell.encode("utf-8", "surrogateescape") for cell in row] for row in rows]
    keys, used, weights = (tensor.numpy() for tensor in SPLIT(tf.constant(texts, tf.string)))
    read = [(by_hand(tags), [(c, 1.0)], [(part, 1.0) for part in path.split("/")[:2]]) for tags, c, path in rows]
    for row, bags in enumerate(read):
        for places, bag in zip(SPEC.id_ranges, bags):
            assert used[row, places].tolist() == [place < len(bag) for place in range(places.stop - places.start)]
            came = keys[row, places][: len(bag)].tolist()
            assert came == [key.encode("utf-8", "surrogateescape") for key, _ in bag]
            wanted = [1.0 if weight is None else weight for _, weight in bag]
            np.testing.assert_allclose(weights[row, places][: len(bag)], wanted, rtol=1e-6)

    # The encoder refuses rows with bad weights, so it is compared on the others.
    good = [row for row, (tags, _, _) in enumerate(read) if None not in [weight for _, weight in tags]]
    known = {
        name: list(dict.fromkeys(key for bags in read for key, _ in bags[f])) for f, name in enumerate(SPEC.categorical_names)
    }
    table = {"x": [0.0] * len(good), **{name: [texts[row][f] for row in good] for f, name in enumerate(SPEC.categorical_names)}}
    _, ids, of = Encoder(SPEC, Vocabulary.from_keys(known)).columns(table)
    np.testing.assert_array_equal(ids >= 0, used[good])
    np.testing.assert_allclose(of[ids >= 0], weights[good][used[good]], rtol=1e-6)
    for name, places in zip(known, SPEC.id_ranges):
        for at in range(places.start, places.stop):
            found = [known[name][i].encode("utf-8", "surrogateescape") if i >= 0 else None for i in ids[:, at].tolist()]
            assert found == [key if is_used else None for key, is_used in zip(keys[good, at].tolist(), used[good, at])]
