"""DLRMConfig: the Hub model's figures, validation, JSON both ways."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import DataError


def test_the_hub_model_has_the_published_size():
    config = DLRMConfig.preset("criteo_kaggle")
    assert sum(config.categorical_feature_sizes) == 33_762_577
    assert config.table_rows == 33_762_577 + 26
    assert config.interaction_dim == 16 + 27 * 26 // 2
    # 33,762,577 x 16 table weights and 476,561 dense ones, plus our 26 OOV rows.
    dense = 14 * 512 + 513 * 256 + 257 * 64 + 65 * 16 + 368 * 512 + 513 * 256 + 257
    assert config.num_parameters == 33_762_577 * 16 + dense + 26 * 16


def test_block_offsets_leave_room_for_one_oov_row_each():
    config = DLRMConfig((3, 1, 2), embedding_dim=4, bottom_mlp=(4,), top_mlp=(1,))
    assert config.block_offsets == (0, 4, 6)
    assert config.table_rows == 9


@pytest.mark.parametrize(
    "interaction, self_interaction, width",
    [("dot", False, 4 + 3), ("dot", True, 4 + 6), ("cat", False, 4 * 3)],
)
def test_interaction_width(interaction, self_interaction, width):
    config = DLRMConfig(
        (5, 6), embedding_dim=4, bottom_mlp=(4,), top_mlp=(1,), interaction=interaction, self_interaction=self_interaction
    )
    assert config.interaction_dim == width
    assert [shape for *_, shape in config.dense_shapes()] == [4, 1]
    assert list(config.dense_shapes())[1] == ("top_mlp", 0, width, 1)


@pytest.mark.parametrize(
    "sizes, kind, width",
    [
        ((5, 6, 7), {}, 3 * 4 + 3),
        ((5, 6, 7), {"self_interaction": True}, 3 * 4 + 6),
        ((5, 6, 7), {"interaction": "cat"}, 3 * 4),
        ((5, 6, 7), {"interaction": "cross", "cross_layers": 1}, 3 * 4),
        ((5,), {}, 4),
        ((5,), {"self_interaction": True}, 4 + 1),
    ],
)
def test_without_dense_features_the_embeddings_are_all_there_is(sizes, kind, width):
    config = DLRMConfig(sizes, dense_dim=0, embedding_dim=4, top_mlp=(1,), **kind)
    assert (config.interaction_dim, config.bottom_mlp) == (width, ())
    assert {part for part, *_ in config.dense_shapes()} == {"top_mlp"} | ({"cross"} if "cross_layers" in kind else set())
    assert config.inputs == {"categorical": ("int32", len(sizes))}
    assert config.arrays == {"dense": ("float32", 0), **config.inputs}
    assert DLRMConfig.from_json(config.to_json()) == config
    # Whatever bottom MLP a preset has: it has nothing to read.
    assert dataclasses.replace(DLRMConfig(sizes, 3, 4, (8, 4), (1,), **kind), dense_dim=0) == config


@pytest.mark.parametrize(
    "rank, layers",
    [
        (None, [("cross", 0, 12, 12), ("cross", 1, 12, 12)]),
        (5, [("cross_projection", 0, 12, 5), ("cross", 0, 5, 12), ("cross_projection", 1, 12, 5), ("cross", 1, 5, 12)]),
    ],
)
def test_cross_layers_stand_between_the_mlps(rank, layers):
    # 3 vectors of width 4 side by side.
    config = DLRMConfig((5, 6), 3, 4, (4,), (7, 1), interaction="cross", cross_layers=2, cross_rank=rank)
    assert config.interaction_dim == 12
    assert list(config.dense_shapes()) == [("bottom_mlp", 0, 3, 4), *layers, ("top_mlp", 0, 12, 7), ("top_mlp", 1, 7, 1)]
    # The matrix before the last one of a low-rank layer has no bias.
    crosses = 2 * (12 * 12 + 12) if rank is None else 2 * (12 * 5 + 5 * 12 + 12)
    assert config.num_parameters == (3 * 4 + 4) + crosses + (12 * 7 + 7) + (7 + 1) + (5 + 1 + 6 + 1) * 4
    assert [shape for part, i, kind, shape in config.dense_weights() if (part, i) == ("cross", 1)] == [(rank or 12, 12), (12,)]


def test_json_of_the_first_architectures_is_as_it_was():
    assert DLRMConfig((5, 6), 3, 4, (4,), (1,), interaction="cat").to_json() == (
        '{"categorical_feature_sizes": [5, 6], "dense_dim": 3, "embedding_dim": 4, "bottom_mlp": [4], "top_mlp": [1], '
        '"interaction": "cat", "self_interaction": false}'
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"bottom_mlp": (8, 5)}, r"bottom_mlp\[-1\]=5, embedding_dim=16"),
        ({"top_mlp": (8, 2)}, r"top_mlp\[-1\]=2"),
        ({"interaction": "sum"}, "'sum'"),
        ({"categorical_feature_sizes": (3, 0)}, r"categorical_feature_sizes\[1\] must be a positive integer. Received 0"),
        ({"categorical_feature_sizes": (3, 2.5)}, "Received 2.5"),
        ({"categorical_feature_sizes": "12"}, "Received '12'"),
        ({"categorical_feature_sizes": ()}, "at least one"),
        ({"dense_dim": True}, "Received True"),
        ({"dense_dim": -1}, "dense_dim must be an integer of at least 0. Received -1"),
        ({"bottom_mlp": ()}, "bottom_mlp must have at least one entry"),
        ({"interaction": "cat", "self_interaction": True}, "self_interaction needs"),
        ({"interaction": "cross", "self_interaction": True}, "self_interaction needs .*Received interaction='cross'"),
        ({"cross_rank": 4}, "need interaction='cross'. Received interaction='dot'"),
        ({"interaction": "cat", "cross_layers": 2}, "need interaction='cross'. Received interaction='cat'"),
        ({"interaction": "cross", "cross_layers": 0}, "cross_layers must be a positive integer. Received 0"),
        ({"interaction": "cross", "cross_layers": 10**9}, "cross_layers must be at most 7. Received 1000000000"),
        ({"interaction": "cross", "cross_rank": 0}, "cross_rank must be a positive integer. Received 0"),
        ({"interaction": "cross", "cross_rank": "8"}, "cross_rank must be a positive integer. Received '8'"),
        ({"categorical_feature_sizes": (2**31,)}, "2\\*\\*31"),
    ],
)
def test_impossible_architectures_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        DLRMConfig(**{"categorical_feature_sizes": (3, 4), **fields})


@given(
    sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=30),
    dim=st.integers(1, 64),
    head=st.one_of(
        st.builds(dict, self_interaction=st.booleans()),
        st.builds(
            dict,
            interaction=st.just("cross"),
            cross_layers=st.integers(1, 7),
            cross_rank=st.one_of(st.none(), st.integers(1, 600)),
        ),
    ),
)
def test_json_round_trip(sizes, dim, head):
    config = DLRMConfig(sizes, embedding_dim=dim, bottom_mlp=(7, dim), top_mlp=(1,), **head)
    assert DLRMConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[" * 20_000, "my.json: not JSON"),
        ("[]", "wanted a JSON object. Received list"),
        ("{}", "wanted the field categorical_feature_sizes. Received none"),
        (json.dumps({"categorical_feature_sizes": [1], "dropout": 1}), "wanted the fields bottom_mlp, .*Received 'dropout'"),
        (json.dumps({"categorical_feature_sizes": [1], "top_mlp": [2]}), r"my.json: top_mlp\[-1\]"),
    ],
)
def test_bad_json_names_the_file_and_the_fault(text, message):
    with pytest.raises(DataError, match=message):
        DLRMConfig.from_json(text, source="my.json")


def test_read_takes_presets_and_files(tmp_path):
    assert DLRMConfig.read("tiny") == DLRMConfig.preset("tiny")
    path = tmp_path / "c.json"
    path.write_text(DLRMConfig.preset("tiny").to_json())
    assert DLRMConfig.read(str(path)) == DLRMConfig.preset("tiny")
    with pytest.raises(DataError, match="tinny: wanted a preset .*Received neither"):
        DLRMConfig.read("tinny")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="wanted a JSON file. Received bytes that are not UTF-8"):
        DLRMConfig.read(str(path))


def test_bags_have_one_spelling():
    single = DLRMConfig((3, 4))
    assert single == DLRMConfig((3, 4), hot_sizes=[1, 1], pooling=["mean", "mean"]) and not single.has_bags
    assert set(json.loads(single.to_json())) == {
        *("categorical_feature_sizes", "dense_dim", "embedding_dim", "bottom_mlp", "top_mlp", "interaction", "self_interaction")
    }
    assert (single.id_columns, single.bag_sizes, single.column_features) == (2, (1, 1), (0, 1))
    assert single.inputs == {"dense": ("float32", 13), "categorical": ("int32", 2)}
    bags = DLRMConfig((3, 4, 5), hot_sizes=(2, 1, 3), pooling=("sum", "mean", "sum"), weighted=True)
    assert DLRMConfig.from_json(bags.to_json()) == bags
    assert bags.id_columns == 6 and bags.column_features == (0, 0, 1, 2, 2, 2)
    assert bags.id_ranges == (slice(0, 2), slice(2, 3), slice(3, 6))
    assert bags.inputs == {"dense": ("float32", 13), "categorical": ("int32", 6), "weights": ("float32", 6)}
    assert DLRMConfig((3, 4), hot_sizes=(2, 2), pooling=("mean", "mean")).pooling == "mean"
    # One key each, but with a weight.
    weighted = DLRMConfig((3, 4), weighted=True)
    assert weighted.has_bags and weighted.hot_sizes == (1, 1) and weighted.inputs["weights"] == ("float32", 2)
    assert (bags.num_parameters, bags.interaction_dim) == (DLRMConfig((3, 4, 5)).num_parameters, 16 + 6)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"hot_sizes": (2,)}, "hot_sizes must have 2 entries, one per feature. Received 1"),
        ({"hot_sizes": (2, 0)}, r"hot_sizes\[1\] must be a positive integer. Received 0"),
        ({"hot_sizes": 3}, "hot_sizes must be a sequence"),
        ({"hot_sizes": (1, 2**16)}, "hot_sizes must have a sum of at most 65,536. Received 65537"),
        ({"pooling": "max"}, r"pooling must be 'sum' or 'mean', for all or one per feature \(2\). Received 'max'"),
        ({"pooling": ("sum", "mean", "sum")}, "pooling must be"),
        ({"pooling": ("sum", 1)}, "pooling must be"),
        ({"pooling": None}, "pooling must be .* Received None"),
        ({"weighted": 1}, "weighted must be true or false. Received 1"),
    ],
)
def test_impossible_bags_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DLRMConfig((3, 4), **fields)
