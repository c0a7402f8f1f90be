"""The shape of a DLRM: `DLRMConfig`, its presets, and what follows from them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Optional, Union

from dlrm_tf.config_checks import POOLING, bags_of, positives, tables_of, whole
from dlrm_tf.errors import DataError
from dlrm_tf.files import StrPath
from dlrm_tf.presets import json_text, preset_or_file

# Ids per categorical feature of Criteo Kaggle, unfiltered and with the empty string counted
# (MindSpore models, research/recommend/dlrm: 33,762,577 ids in all).
CRITEO_KAGGLE_SIZES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194,
    27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
TINY_SIZES = (7, 5, 101, 83, 9, 4, 33, 6, 3, 57, 11, 91, 13, 5, 19, 77, 4, 8, 6, 4, 66, 5, 4, 21, 6, 15)
# How the vectors of a row meet.
INTERACTIONS = ("dot", "cat", "cross")
# What the fields of cross layers are in a model without them.
CROSS_DEFAULTS: dict[str, Any] = {"cross_layers": 3, "cross_rank": None}
# More cross layers than anyone uses; a damaged file must not ask for millions, and a weights file holds no more.
MAX_CROSS_LAYERS = 7
# The id of a place that a bag does not use.
UNUSED_PLACE = -1
# What the fields of bags are in a model of one key per feature.
BAG_DEFAULTS: dict[str, Any] = {"hot_sizes": None, "pooling": POOLING[0], "weighted": False}


@dataclasses.dataclass(frozen=True)
class DLRMConfig:
    """Architecture of a DLRM (Naumov et al. 2019, https://arxiv.org/abs/1906.00091).

    Attributes:
      categorical_feature_sizes: ids per categorical feature, in feature order, without the OOV row.
      dense_dim: number of dense (numeric) features; 0 for a model of categorical features alone.
      embedding_dim: width D of an embedding row.
      bottom_mlp: units of the bottom MLP's layers; the last equals `embedding_dim`. Without dense features
        `()`, whatever is given.
      top_mlp: units of the top MLP's layers; the last is 1 (the logit).
      interaction: `"dot"` (pairwise dot products beside the dense vector), `"cat"` (plain concatenation) or `"cross"`
        (concatenation and cross layers, DCNv2, Wang et al. 2021, https://arxiv.org/abs/2008.13535). Without dense features the
        dot products stand beside all embeddings, as in PNN (Qu et al. 2016, https://arxiv.org/abs/1611.00144, section 3).
      self_interaction: with `"dot"`, whether a vector's product with itself is kept.
      hot_sizes: the most keys of each categorical feature, in feature order: its columns of the input `categorical`. None: one
        key each, which also is what all ones become, unless `weighted`.
      pooling: how the rows of a feature's keys become one vector, `"sum"` or `"mean"`: one word for all, or one a feature.
      weighted: whether every key has a weight, float32 (the input `weights`).
      cross_layers: with `"cross"`, the number of cross layers, 1 to 7.
      cross_rank: with `"cross"`, the rank of a cross layer's matrix, which is kept as a product of two (section 3.2 of the
        paper); None for a full matrix.
      feature_tables: the number of each categorical feature's table, in feature order, numbered from 0 by first appearance.
        Features of one table have equal sizes, and read the same row for the same id. None: a table each, which also is what
        different numbers become.

    Raises:
      ValueError: a value out of range, or sizes that do not fit each other; the message names both.
    """

    categorical_feature_sizes: tuple[int, ...]
    dense_dim: int = 13
    embedding_dim: int = 16
    bottom_mlp: tuple[int, ...] = (512, 256, 64, 16)
    top_mlp: tuple[int, ...] = (512, 256, 1)
    interaction: str = "dot"
    self_interaction: bool = False
    hot_sizes: Optional[tuple[int, ...]] = None
    pooling: Union[str, tuple[str, ...]] = "sum"
    weighted: bool = False
    cross_layers: int = 3
    cross_rank: Optional[int] = None
    feature_tables: Optional[tuple[int, ...]] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense_dim", whole("dense_dim", self.dense_dim, 0))
        object.__setattr__(self, "bottom_mlp", positives("bottom_mlp", self.bottom_mlp) if self.dense_dim else ())
        for name in ("categorical_feature_sizes", "top_mlp"):
            object.__setattr__(self, name, positives(name, getattr(self, name)))
        for name in ("embedding_dim", "cross_layers"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        if self.dense_dim and self.bottom_mlp[-1] != self.embedding_dim:
            raise ValueError(
                f"bottom_mlp[-1] must equal embedding_dim. Received bottom_mlp[-1]={self.bottom_mlp[-1]}, "
                f"embedding_dim={self.embedding_dim}"
            )
        if self.top_mlp[-1] != 1:
            raise ValueError(f"top_mlp[-1] must be 1 (one logit). Received top_mlp[-1]={self.top_mlp[-1]}")
        if self.interaction not in INTERACTIONS:
            raise ValueError(f"interaction must be one of {', '.join(INTERACTIONS)}. Received {self.interaction!r}")
        if not isinstance(self.self_interaction, bool):
            raise ValueError(f"self_interaction must be true or false. Received {self.self_interaction!r}")
        if self.self_interaction and self.interaction != "dot":
            raise ValueError(f"self_interaction needs interaction='dot'. Received interaction={self.interaction!r}")
        if self.cross_rank is not None:
            object.__setattr__(self, "cross_rank", whole("cross_rank", self.cross_rank))
        if self.cross_layers > MAX_CROSS_LAYERS:
            raise ValueError(f"cross_layers must be at most {MAX_CROSS_LAYERS}. Received {self.cross_layers}")
        if self.interaction != "cross" and any(getattr(self, name) != value for name, value in CROSS_DEFAULTS.items()):
            raise ValueError(f"cross_layers and cross_rank need interaction='cross'. Received interaction={self.interaction!r}")
        object.__setattr__(self, "feature_tables", tables_of(self.feature_tables, self.categorical_feature_sizes))
        if self.table_rows >= 2**31:
            raise ValueError(f"the table must have fewer than 2**31 rows (int32 ids). Received {self.table_rows} rows")
        hot_sizes, pooling = bags_of(self.hot_sizes, self.pooling, self.weighted, self.num_categorical)
        object.__setattr__(self, "hot_sizes", hot_sizes)
        object.__setattr__(self, "pooling", pooling)

    @property
    def num_categorical(self) -> int:
        """Number of categorical features F."""
        return len(self.categorical_feature_sizes)

    @property
    def has_bags(self) -> bool:
        """Whether a feature may have several keys, or keys have weights: then id -1 is an unused place, not an unknown key."""
        return self.hot_sizes is not None

    @property
    def bag_sizes(self) -> tuple[int, ...]:
        """The most keys of each categorical feature: `hot_sizes`, or one each."""
        return self.hot_sizes or (1,) * self.num_categorical

    @property
    def poolings(self) -> tuple[str, ...]:
        """`pooling` of each categorical feature."""
        return (self.pooling,) * self.num_categorical if isinstance(self.pooling, str) else self.pooling

    @property
    def id_columns(self) -> int:
        """Columns of the input `categorical`: F, or the sum of `hot_sizes`."""
        return sum(self.bag_sizes)

    @property
    def id_ranges(self) -> tuple[slice, ...]:
        """The columns of the input `categorical` that belong to each categorical feature."""
        return column_ranges(self.bag_sizes)

    @property
    def column_features(self) -> tuple[int, ...]:
        """The feature of each column of the input `categorical`."""
        return tuple(f for f, size in enumerate(self.bag_sizes) for _ in range(size))

    @property
    def arrays(self) -> dict[str, tuple[str, int]]:
        """The arrays of rows as functions take and return them: name -> `(dtype, columns)`; all are `[rows, columns]`.

        `dense` already is log(max(x, 0) + 1); it is there without dense features too, with 0 columns. `categorical` holds ids:
        feature after feature, each with its `bag_sizes` columns, -1 in the places of a bag that are not used. `weights`, of a
        weighted model, has the weight of each id.
        """
        arrays = {"dense": ("float32", self.dense_dim), "categorical": ("int32", self.id_columns)}
        return {**arrays, "weights": ("float32", self.id_columns)} if self.weighted else arrays

    @property
    def inputs(self) -> dict[str, tuple[str, int]]:
        """The model's inputs: `arrays` without those of 0 columns, which runtimes of other makers refuse."""
        return {name: array for name, array in self.arrays.items() if array[1]}

    @property
    def tables(self) -> tuple[int, ...]:
        """The number of each categorical feature's table: `feature_tables`, or a table each."""
        return self.feature_tables or tuple(range(self.num_categorical))

    @property
    def table_features(self) -> tuple[int, ...]:
        """The first feature of each table: a loop over these meets every row once."""
        first: dict[int, int] = {}
        for feature, table in enumerate(self.tables):
            first.setdefault(table, feature)
        return tuple(first.values())

    @property
    def num_ids(self) -> int:
        """Ids of all tables, those of a shared one counted once."""
        return sum(self.categorical_feature_sizes[f] for f in self.table_features)

    @property
    def table_rows(self) -> int:
        """Rows of the fused table: every table's ids and its one OOV row."""
        return self.num_ids + len(self.table_features)

    @property
    def table_bytes(self) -> int:
        """Bytes of the fused table, float32 `[table_rows, D]`."""
        return self.table_rows * self.embedding_dim * 4

    @property
    def block_offsets(self) -> tuple[int, ...]:
        """First row of every feature's block in the fused table; a block is `size_f` ids, then the OOV row.

        Features that share a table share its block.
        """
        sizes = [self.categorical_feature_sizes[f] + 1 for f in self.table_features]
        starts = list(itertools.accumulate(sizes, initial=0))
        return tuple(starts[table] for table in self.tables)

    @property
    def num_vectors(self) -> int:
        """Number V of vectors of a row that meet: one a categorical feature, before them that of the dense features if any."""
        return self.num_categorical + bool(self.dense_dim)

    @property
    def num_pairs(self) -> int:
        """Dot products of a row; 0 with another interaction, or of a single vector."""
        if self.interaction != "dot":
            return 0
        return self.num_vectors * (self.num_vectors + (1 if self.self_interaction else -1)) // 2

    @property
    def interaction_dim(self) -> int:
        """Width of the top MLP's input: of the vectors that go there as they are, and of the dot products."""
        direct = 1 if self.interaction == "dot" and self.dense_dim else self.num_vectors
        return direct * self.embedding_dim + self.num_pairs

    def dense_shapes(self) -> Iterator[tuple[str, int, int, int]]:
        """All dense layers: those of the bottom MLP, the cross layers' if there are any, those of the top MLP.

        Yields:
          `(part, layer, in units, out units)`; `layer` is the number from 0 in its part: `"bottom_mlp"`, `"top_mlp"`, `"cross"`
          (the matrix of a cross layer) or `"cross_projection"` (at low rank: the matrix before that one, which has no bias).
        """
        width = self.interaction_dim
        yield from _mlp_shapes("bottom_mlp", self.dense_dim, self.bottom_mlp)
        for i in range(self.cross_layers if self.interaction == "cross" else 0):
            if self.cross_rank is not None:
                yield "cross_projection", i, width, self.cross_rank
            yield "cross", i, self.cross_rank or width, width
        yield from _mlp_shapes("top_mlp", width, self.top_mlp)

    def dense_weights(self) -> Iterator[tuple[str, int, str, tuple[int, ...]]]:
        """All weights of the dense layers.

        Yields:
          `(part, layer, kind, shape)`; `part` and `layer` as in `dense_shapes`; `kind` is `"kernel"`, of shape `[in, out]`, or
          `"bias"`, `[out]`.
        """
        for part, i, fan_in, fan_out in self.dense_shapes():
            yield part, i, "kernel", (fan_in, fan_out)
            if part != "cross_projection":
                yield part, i, "bias", (fan_out,)

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, OOV rows included."""
        dense = sum(math.prod(shape) for *_, shape in self.dense_weights())
        return dense + self.table_rows * self.embedding_dim

    def to_json(self) -> str:
        """One-line JSON; fields of bags, cross layers and shared tables only where they are not the default: earlier files have
        none of them.
        """
        optional = {**BAG_DEFAULTS, **CROSS_DEFAULTS, "feature_tables": None}
        fields = dataclasses.asdict(self)
        return json.dumps({k: v for k, v in fields.items() if k not in optional or v != optional[k]})

    @classmethod
    def from_json(cls, text: str, *, source: str = "config") -> "DLRMConfig":
        """Reads what `to_json` writes; a field that is absent has its default.

        Args:
          text: JSON.
          source: named in errors.

        Raises:
          DataError: not JSON, an unknown or missing field, or values that do not fit.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as e:  # RecursionError: nested too deeply
            raise DataError(f"{source}: not JSON ({e})") from e
        if not isinstance(fields, dict):
            raise DataError(f"{source}: wanted a JSON object. Received {type(fields).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise DataError(
                f"{source}: wanted the fields {', '.join(sorted(known))}. Received {', '.join(map(repr, unknown))[:200]}"
            )
        if "categorical_feature_sizes" not in fields:
            raise DataError(f"{source}: wanted the field categorical_feature_sizes. Received none")
        try:
            return cls(**fields)
        except ValueError as e:  # names the value, which in a damaged file may be anything
            raise DataError(f"{source}: {str(e)[:500]}") from e

    @classmethod
    def preset(cls, name: str) -> "DLRMConfig":
        """A known architecture: `"criteo_kaggle"` (the MindSpore Hub model) or `"tiny"` (for trying things out)."""
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}. Received {name!r}")
        return PRESETS[name]

    @classmethod
    def read(cls, name_or_path: StrPath) -> "DLRMConfig":
        """A known architecture, or that of a JSON file.

        Args:
          name_or_path: a preset's name, or the path of a file as `to_json` writes it.

        Raises:
          DataError: neither, or a file that `from_json` refuses.
        """
        return preset_or_file(name_or_path, PRESETS, lambda path: cls.from_json(json_text(path), source=path))


def column_ranges(sizes: Sequence[int]) -> tuple[slice, ...]:
    """Of parts of these sizes that stand side by side the columns of each."""
    stops = itertools.accumulate(sizes)
    return tuple(slice(stop - size, stop) for stop, size in zip(stops, sizes))


def _mlp_shapes(part: str, width: int, units: tuple[int, ...]) -> Iterator[tuple[str, int, int, int]]:
    for i, out in enumerate(units):
        yield part, i, width, out
        width = out


PRESETS = {
    "criteo_kaggle": DLRMConfig(CRITEO_KAGGLE_SIZES),
    "tiny": DLRMConfig(TINY_SIZES, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(16, 1)),
}
