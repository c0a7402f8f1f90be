"""A random model with several keys per feature, its files and rows, with and without weights of keys."""

import json

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.data.bag import Bag
from dlrm_tf.data.encoder import Encoder
from dlrm_tf.data.prepare import prepare
from dlrm_tf.data.spec import FeatureSpec
from dlrm_tf.keras2 import tensorflow

tf = tensorflow()
ROWS = 60
BAGS = {
    "plain": {"tags": Bag("|", 3), "words": Bag(",", 4, "mean")},
    "weighted": {"tags": Bag("|", 3, weight_separator=":"), "words": Bag(",", 4, "mean", ":")},
}
KEYS = {
    "tags": [*"abcdefgh", "", "0a0b0c0d", "a:b"],
    "site": ["x", "y|z", "", "1.5", "x:2"],
    "words": [*(f"w{i}" for i in range(2000)), "", "Zürich", "ff"],
}


class Case:
    """A random model with its files, raw rows, and what the data room makes of them."""

    features = tuple(KEYS)

    def __init__(self, kind, folder):
        self.spec = FeatureSpec.of(["n", "m"], list(KEYS), bags=BAGS[kind])
        self.vocabulary = dlrm_tf.Vocabulary.from_keys(KEYS)
        hot = {"hot_sizes": self.spec.hot_sizes, "pooling": self.spec.poolings, "weighted": self.spec.weighted}
        config = dlrm_tf.DLRMConfig(self.vocabulary.sizes, 2, 4, (8, 4), (16, 1), **hot)
        self.model = dlrm_tf.DLRM(config, seed=1)
        table = self.model.embedding.table
        table.assign(np.random.default_rng(7).normal(0, 0.5, table.shape))  # OOV rows too
        self.model.vocabulary_fingerprint = self.vocabulary.fingerprint
        self.weights, self.keys, self.columns = folder / "m.weights.h5", folder / "v.npz", folder / "spec.json"
        self.model.save_weights(self.weights)
        self.vocabulary.save(self.keys)
        self.columns.write_text(json.dumps(self.spec.to_dict()))
        self.dense, self.text = raw_rows(self.spec)
        self.encoded = Encoder(self.spec, self.vocabulary).arrays(self.dense, self.text)
        self.inputs = dict(zip(config.inputs, self.encoded))
        self.probability = tf.sigmoid(self.model(self.inputs)).numpy()


def raw_rows(spec, rows=ROWS):
    """Texts with empty fields, empty keys, unknown keys, more keys than there is room for, weights given and not."""
    generator = np.random.default_rng(0)
    text = np.empty((rows, len(KEYS)), object)
    for f, (name, keys) in enumerate(KEYS.items()):
        bag = spec.bags.get(name)
        for row in range(rows):
            chosen = generator.choice(np.array([*keys, "unknown"], object), generator.integers(1, 7) if bag else 1)
            if bag and bag.weight_separator:
                # A key that contains the separator needs a weight after it.
                marks = [
                    f":{w:.3g}" if w > 0.3 or ":" in key else "" for w, key in zip(generator.random(len(chosen)) * 3, chosen)
                ]
                chosen = [key + mark for key, mark in zip(chosen, marks)]
            text[row, f] = bag.separator.join(chosen) if bag else chosen[0]
    text[0, 0] = text[1, 2] = ""
    text[2, 2] = ",,"
    return generator.integers(-3, 3000, (rows, 2)).astype(np.float32), text


@pytest.fixture(scope="session", params=list(BAGS))
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("bags"))


@pytest.fixture(scope="session")
def records(case, tmp_path_factory):
    """900 raw rows as prepared data."""
    folder, mark = tmp_path_factory.mktemp("data"), case.spec.separator
    dense, text = raw_rows(case.spec, 900)
    lines = [mark.join([str(row % 2), *map(str, numbers), *keys]) for row, (numbers, keys) in enumerate(zip(dense, text))]
    (folder / "log").write_text("\n".join(lines) + "\n")
    return prepare(folder / "log", folder / "data", spec=case.spec, vocabulary=case.vocabulary, quiet=True)
