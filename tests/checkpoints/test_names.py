"""The name map is a bijection, and finds the weights after prefixes."""

import pytest

from dlrm_tf.checkpoints.checkpoint import Checkpoint
from dlrm_tf.checkpoints.infer_config import infer_config
from dlrm_tf.checkpoints.names import MINDSPORE, NAMINGS, Weight, assign, weights_of
from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError

KAGGLE = DLRMConfig.preset("criteo_kaggle")


@pytest.mark.parametrize("naming", NAMINGS.values(), ids=NAMINGS.keys())
def test_bijection(naming):
    names = naming.names(KAGGLE)
    assert len(names) == 7 * 2 + 26 == len(set(names.values()))
    found = assign(names.values(), "x")
    assert found.naming is naming and found.weights == names and not found.state and not found.other


def test_bijection_of_torchrecs_cross_layers():
    config = DLRMConfig((10,) * 26, interaction="cross", cross_rank=40)
    names = NAMINGS["torchrec"].names(config)
    assert len(names) == 7 * 2 + 3 * 3 + 26 == len(set(names.values()))
    assert assign(names.values(), "x").weights == names
    for other in ("mindspore", "dlrm_pytorch"):
        with pytest.raises(CheckpointError, match="x: wanted interaction 'dot' or 'cat': .* only torchrec's"):
            NAMINGS[other].check(config, "x")


def test_names_and_order_are_those_of_the_golden_file(golden_ckpt, golden_run):
    settings, _ = golden_run("hub_layout")
    config = DLRMConfig(settings["categorical_feature_sizes"])
    with Checkpoint(golden_ckpt("hub_layout", "init")) as checkpoint:
        wanted = [MINDSPORE.name(w) for w in weights_of(config)]
        assert list(checkpoint.names[: len(wanted)]) == wanted
        assert [checkpoint.info(n).shape for n in wanted] == list(weights_of(config).values())
        found = assign(checkpoint.names, "x")
    assert found.prefix == "" and found.other == ("global_step", "learning_rate", "momentum")
    assert found.state["accum", Weight("top_mlp", 2, "bias")] == "accum.top_mlp.2.bias"
    assert len(found.state) == 2 * len(wanted)


@pytest.mark.parametrize("prefix", ["", "network.", "network.network.dlrm."])
def test_prefixes(prefix):
    names = [prefix + MINDSPORE.name(w) for w in weights_of(KAGGLE)]
    found = assign([*names, *("accum." + n for n in names), "optimizer.stat." + names[0]], "x")
    assert found.prefix == prefix and set(found.weights.values()) == set(names)
    assert {slot for slot, _ in found.state} == {"accum", "optimizer.stat"}


def test_two_networks_are_ambiguous_until_one_is_chosen():
    names = [p + MINDSPORE.name(w) for p in ("student.", "teacher.") for w in weights_of(KAGGLE)]
    with pytest.raises(CheckpointError, match="2 sets.*'student.', 'teacher.'.*--prefix"):
        assign(names, "x")
    assert assign(names, "x", prefix="teacher.").weights[Weight("embedding", 3, "table")].startswith("teacher.embeddinglookup")
    with pytest.raises(CheckpointError, match="no weights with prefix 'net.'"):
        assign(names, "x", prefix="net.")


def test_no_weights():
    with pytest.raises(CheckpointError, match="holds no DLRM: wanted tensors such as bottom_mlp.0.weight. Received conv1"):
        assign(["conv1.weight"], "x")
    with pytest.raises(CheckpointError, match="only optimizer state"):
        assign(["accum.bottom_mlp.0.weight"], "x")


@pytest.mark.parametrize(
    "name", ["xbottom_mlp.0.weight", "bottom_mlp.00.weight", "bottom_mlp.-1.weight", "bottom_mlp.0.weight.x"]
)
def test_near_misses(name):
    assert MINDSPORE.match(name) is None


CONFIGS = [
    KAGGLE,
    DLRMConfig.preset("tiny"),
    DLRMConfig((10, 20), dense_dim=5, embedding_dim=8, bottom_mlp=(8,), top_mlp=(1,), self_interaction=True),
    DLRMConfig((10,) * 26, interaction="cat"),
    DLRMConfig((10,) * 26, interaction="cross", cross_layers=2),
    DLRMConfig((10,) * 26, interaction="cross", cross_rank=40),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_infer_config(config):
    assert infer_config(weights_of(config), "x") == config


def test_infer_config_says_when_it_can_not_know():
    # 3 vectors of width 1: dot gives 1 + 3 = 4 ... 3 tables of width 2: dot 2 + 6 = 8, cat 4 * 2 = 8.
    config = DLRMConfig((5, 5, 5), embedding_dim=2, bottom_mlp=(2,), top_mlp=(1,))
    with pytest.raises(CheckpointError, match="more than one interaction fits.*--config"):
        infer_config(weights_of(config), "x")


def test_infer_config_names_what_does_not_fit_in_cross_layers():
    shapes = weights_of(DLRMConfig((10, 20), interaction="cross", cross_rank=5))
    assert infer_config(shapes, "x").cross_rank == 5
    with pytest.raises(CheckpointError, match="no interaction fits: top_mlp's first kernel takes 47 values, .* give cross 48"):
        infer_config({**shapes, Weight("top_mlp", 0, "kernel"): (47, 512)}, "x")
    with pytest.raises(CheckpointError, match="cross_layers must be at most 7. Received 1000000"):
        infer_config({**shapes, Weight("cross", 999_999, "bias"): (48,)}, "x")


def test_infer_config_names_what_does_not_fit():
    shapes = weights_of(KAGGLE)
    for weight, shape, wanted in [
        (Weight("bottom_mlp", 1, "kernel"), (511, 256), "bottom_mlp layer 0 gives 512 values, layer 1 takes 511"),
        (Weight("bottom_mlp", 1, "kernel"), None, "bottom_mlp 1 has no kernel"),
        (Weight("top_mlp", 0, "kernel"), (368, 512), "no interaction fits: top_mlp's first kernel takes 368.*dot 367"),
        (Weight("embedding", 4, "table"), None, "embedding 4 has no table"),
        (Weight("embedding", 0, "table"), (1460, 8), "bottom_mlp"),
        (Weight("embedding", 0, "table"), (1460,), "two dimensions"),
    ]:
        changed = {w: shape if w == weight else s for w, s in shapes.items() if w != weight or shape}
        with pytest.raises(CheckpointError, match=wanted):
            infer_config(changed, "x")
