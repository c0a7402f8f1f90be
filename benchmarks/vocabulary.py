"""Size on disk, load time and lookups a second of a vocabulary with Criteo Kaggle's 33,762,577 keys.

python benchmarks/vocabulary.py
"""

import os
import statistics
import tempfile
import time

import numpy as np

from dlrm_tf.config import CRITEO_KAGGLE_SIZES
from dlrm_tf.data.feature_keys import FeatureKeys
from dlrm_tf.data.vocabulary import Vocabulary

_LOOKUPS = 100_000


def main() -> None:
    """Prints the table."""
    rng = np.random.default_rng(1)
    features = []
    for i, size in enumerate(CRITEO_KAGGLE_SIZES):
        # An odd multiplier is a bijection of 32-bit numbers, so the keys are different; '' is one of them, as in Criteo.
        keys = rng.permutation(size - 1).astype(np.uint32) * np.uint32(2654435769)
        features.append((f"C{i + 1}", FeatureKeys(keys, [(b"", size // 2)])))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "vocabulary.npz")
        vocabulary = Vocabulary(features)
        vocabulary.save(path)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            vocabulary = Vocabulary.load(path)
            seconds.append(time.perf_counter() - start)
        print(f"{sum(vocabulary.sizes):,} keys, {os.path.getsize(path) / 1e6:.0f} MB on disk")
        spread = f"median of 5: {min(seconds):.2f} to {max(seconds):.2f}"
        print(f"load, fingerprint checked: {statistics.median(seconds):.2f} s ({spread})")
        name = "C3"
        keys = [f"{key:08x}" for key in rng.choice(vocabulary.feature(name).numeric()[0], _LOOKUPS)]
        start = time.perf_counter()
        vocabulary.lookup(name, keys[:1])
        print(f"first lookup in {name} ({vocabulary.feature(name).size:,} keys): {time.perf_counter() - start:.2f} s")
        start = time.perf_counter()
        vocabulary.lookup(name, keys)
        print(f"later lookups: {_LOOKUPS / (time.perf_counter() - start):,.0f} keys/s")


if __name__ == "__main__":
    main()
