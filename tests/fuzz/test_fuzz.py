"""A short run of the fuzzers: the whole corpus, and mutations of it by hypothesis, in bounded memory."""

import tracemalloc

import pytest
import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEEDS = [(target, path) for target in targets.TARGETS for path in sorted((targets.CORPUS / target).iterdir())]
CONTENTS = {target: [path.read_bytes() for name, path in SEEDS if name == target] for target in targets.TARGETS}
GOOD = ("plain", "cross", "crc", "sliced", "bfloat16", "state", "vocabulary", "manifest")


@pytest.mark.parametrize("target,path", SEEDS, ids=[f"{target}-{path.name[:20]}" for target, path in SEEDS])
def test_corpus(target, path):
    """Nothing but an answer or a clear refusal; and what our own writers made is read."""
    assert targets.run(target, path.read_bytes()) or not path.name.startswith(GOOD)


@st.composite
def mutated(draw, target):
    """Bytes of a seed with some places overwritten, cut out, repeated or filled with another seed's."""
    contents = CONTENTS[target]
    data = draw(st.sampled_from(contents))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["overwrite", "cut", "delete", "repeat", "splice", "flip", "huge"]))
        span = draw(st.integers(1, 64))
        if kind == "overwrite":
            new = draw(st.binary(min_size=1, max_size=16))
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "delete":
            data = data[:at] + data[at + span :]
        elif kind == "repeat":
            data = data[: at + span] + data[at:]
        elif kind == "splice":
            data = data[:at] + draw(st.sampled_from(contents))[at:]
        elif kind == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
        elif kind == "huge":
            data = data[:at] + b"\xff" * 8 + data[at + 8 :]
    return data


PATIENT = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.TARGETS)
@settings(max_examples=1000, **PATIENT)
@given(st.data())
def test_mutations(target, data):
    targets.run(target, data.draw(mutated(target)))


@pytest.mark.parametrize("target", ["ckpt", "weights"])
@settings(max_examples=300, **PATIENT)
@given(st.data())
def test_memory_is_bounded_by_the_files_size(target, data):
    content = data.draw(mutated(target))
    tracemalloc.start()
    try:
        targets.run(target, content)
        assert tracemalloc.get_traced_memory()[1] - 20 * len(content) < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_small_file_that_claims_a_huge_model_takes_no_memory(tmp_path):
    """A table of 128 GB that was declared and never written is 2 kB on the disk."""
    import h5py
    import numpy as np

    from dlrm_tf import DLRMConfig
    from dlrm_tf.errors import CheckpointError
    from dlrm_tf.weights.layout import FORMAT, weight_shapes
    from dlrm_tf.weights.reader import WeightsReader

    config = DLRMConfig((2_000_000_000,), dense_dim=1, bottom_mlp=(16,), top_mlp=(1,))
    with h5py.File(tmp_path / "h.weights.h5", "w", libver="latest") as f:
        f.attrs.update({"format": FORMAT, "config": config.to_json()})
        for path, shape in weight_shapes(config).items():
            f.create_dataset(path, shape, np.float32)
    assert (tmp_path / "h.weights.h5").stat().st_size < 10_000
    with pytest.raises(CheckpointError, match="embedding/vars/0 was never written"):
        WeightsReader(tmp_path / "h.weights.h5")
