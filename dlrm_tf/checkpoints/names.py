"""The name map: what each weight of a DLRM is called in the files of each program, as data that is read in both directions."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.errors import CheckpointError


class Weight(NamedTuple):
    """One weight of a DLRM.

    Attributes:
      part: a part of the network as in `DLRMConfig.dense_shapes`, or `"embedding"`.
      number: layer of that part, or categorical feature, from 0.
      kind: `"kernel"` `[in, out]`, `"bias"` `[out]` or `"table"` `[size_f, D]`.
    """

    part: str
    number: int
    kind: str


# Number of an MLP's last layer until the number of its layers is known.
_LAST = -1


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one program names and lays out the weights.

    Attributes:
      templates: (part, kind) -> (name with `{}` for a number, step of that number from one layer to the next).
      last: (part, kind) -> name of an MLP's last layer, where that one has a name of another form.
      transposed: whether kernels are stored `[out, in]`.
      pairs: order of the dot products at the top MLP's input: `"lower"` triangle row by row (MindSpore's and ours), or `"upper"`.
    """

    templates: Mapping[tuple[str, str], tuple[str, int]]
    last: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)
    transposed: bool = False
    pairs: str = "lower"

    def name(self, weight: Weight, layers: int = 0) -> str:
        """The name of a weight.

        Args:
          weight: the weight.
          layers: number of layers of its MLP; needed only where `last` has an entry.
        """
        if weight.number == layers - 1 and (weight.part, weight.kind) in self.last:
            return self.last[weight.part, weight.kind]
        template, step = self.templates[weight.part, weight.kind]
        return template.format(weight.number * step)

    def names(self, config: DLRMConfig) -> dict[Weight, str]:
        """The name of every weight of a configuration that `check` let pass."""
        layers = {"bottom_mlp": len(config.bottom_mlp), "top_mlp": len(config.top_mlp)}
        return {weight: self.name(weight, layers.get(weight.part, 0)) for weight in weights_of(config)}

    def check(self, config: DLRMConfig, path: str, *, to_write: bool = False) -> None:
        """Raises `CheckpointError`, which names the file `path`, for a network that the program does not have.

        Bags show in no weight: a file to read may be given them by a configuration. One to write is for the program to run.

        Args:
          config: the model's configuration.
          path: the file.
          to_write: whether the file is to be written.
        """
        if not config.dense_dim:
            raise CheckpointError(
                f"{path}: wanted a model with dense features: other programs' DLRMs all have a bottom MLP. Received dense_dim 0"
            )
        if to_write and config.has_bags:
            raise CheckpointError(
                f"{path}: wanted one key per feature: only MindSpore's checkpoints are written, and its network takes no more. "
                f"Received hot_sizes {list(config.bag_sizes)}, weighted {str(config.weighted).lower()}"
            )
        if config.interaction == "cross" and ("cross", "kernel") not in self.templates:
            raise CheckpointError(
                f"{path}: wanted interaction 'dot' or 'cat': of the checkpoints known, only torchrec's have cross layers. "
                "Received 'cross'"
            )
        if config.self_interaction and self.pairs == "upper":
            raise CheckpointError(f"{path}: wanted self_interaction false with torchrec's names. Received true")

    def shape(self, weight: Weight, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of a weight in our layout, from its shape as stored; or the other way round."""
        return stored[::-1] if self.transposed and weight.kind == "kernel" else stored

    def match(self, name: str) -> Optional[tuple[str, Weight]]:
        """`(prefix, Weight)` if `name` ends in a weight's name; else None. The prefix is empty or ends in a dot."""
        for (part, kind), last in self.last.items():
            if name == last or name.endswith(f".{last}"):
                return name[: len(name) - len(last)], Weight(part, _LAST, kind)
        for (part, kind), (template, step) in self.templates.items():
            before, after = (re.escape(half) for half in template.split("{}"))
            found = re.search(rf"(?:^|(?<=\.)){before}(0|[1-9][0-9]{{0,5}}){after}$", name)
            if found and int(found.group(1)) % step == 0:
                return name[: found.start()], Weight(part, int(found.group(1)) // step, kind)
        return None

    def number_last_layers(self, weights: dict[Weight, str]) -> dict[Weight, str]:
        """The weights of one network, where `match` could not number an MLP's last layer, with that layer's number."""
        layers = {part: 1 + max((w.number for w in weights if w.part == part), default=_LAST) for part, _ in self.last}
        return {w._replace(number=layers[w.part]) if w.number == _LAST else w: name for w, name in weights.items()}


NAMINGS = {
    # MindSpore models, research/recommend/dlrm/src/dlrm.py.
    "mindspore": Naming(
        {
            ("bottom_mlp", "kernel"): ("bottom_mlp.{}.weight", 1),
            ("bottom_mlp", "bias"): ("bottom_mlp.{}.bias", 1),
            ("top_mlp", "kernel"): ("top_mlp.{}.weight", 1),
            ("top_mlp", "bias"): ("top_mlp.{}.bias", 1),
            ("embedding", "table"): ("embeddinglookup.embeddings.{}.embedding_table", 1),
        }
    ),
    # facebookresearch/dlrm, dlrm_s_pytorch.py: a Sequential of Linear (even) and activation (odd).
    "dlrm_pytorch": Naming(
        {
            ("bottom_mlp", "kernel"): ("bot_l.{}.weight", 2),
            ("bottom_mlp", "bias"): ("bot_l.{}.bias", 2),
            ("top_mlp", "kernel"): ("top_l.{}.weight", 2),
            ("top_mlp", "bias"): ("top_l.{}.bias", 2),
            ("embedding", "table"): ("emb_l.{}.weight", 1),
        },
        transposed=True,
    ),
    # pytorch/torchrec, torchrec/models/dlrm.py, with the table names of its Criteo examples.
    "torchrec": Naming(
        {
            ("bottom_mlp", "kernel"): ("dense_arch.model._mlp.{}._linear.weight", 1),
            ("bottom_mlp", "bias"): ("dense_arch.model._mlp.{}._linear.bias", 1),
            ("top_mlp", "kernel"): ("over_arch.model.0._mlp.{}._linear.weight", 1),
            ("top_mlp", "bias"): ("over_arch.model.0._mlp.{}._linear.bias", 1),
            # Of its DLRM_DCN, which multiplies by V, then by W.
            ("cross_projection", "kernel"): ("inter_arch.crossnet.V_kernels.{}", 1),
            ("cross", "kernel"): ("inter_arch.crossnet.W_kernels.{}", 1),
            ("cross", "bias"): ("inter_arch.crossnet.bias.{}", 1),
            ("embedding", "table"): ("sparse_arch.embedding_bag_collection.embedding_bags.t_cat_{}.weight", 1),
        },
        last={("top_mlp", "kernel"): "over_arch.model.1.weight", ("top_mlp", "bias"): "over_arch.model.1.bias"},
        transposed=True,
        pairs="upper",
    ),
}
MINDSPORE = NAMINGS["mindspore"]
# Prefixes MindSpore's optimizers give their state: SGD and Momentum, Adagrad and FTRL, Adam, LAMB, RMSProp.
STATE_PREFIXES = frozenset(
    ["accum", "stat", "moments", "linear", "moment1", "moment2", "vhat", "adam_m", "adam_v", "mean_square", "mean_gradients"]
)


def weights_of(config: DLRMConfig) -> dict[Weight, tuple[int, ...]]:
    """Every weight of a configuration and its shape, in MindSpore's file order: the dense layers, then the tables."""
    shapes = {Weight(part, i, kind): shape for part, i, kind, shape in config.dense_weights()}
    for f, size in enumerate(config.categorical_feature_sizes):
        shapes[Weight("embedding", f, "table")] = (size, config.embedding_dim)
    return shapes


@dataclasses.dataclass(frozen=True)
class Assignment:
    """Which tensor of a file is what.

    Attributes:
      naming: the file's `Naming`.
      prefix: what stands before every weight's name, `""` or for example `"network."`.
      weights: `Weight` -> tensor name.
      state: `(slot, Weight)` -> tensor name of optimizer state, for example `("accum", Weight("top_mlp", 0, "bias"))`.
      other: names of the remaining tensors (`global_step`, `learning_rate`, …).
    """

    naming: Naming
    prefix: str
    weights: dict[Weight, str]
    state: dict[tuple[str, Weight], str]
    other: tuple[str, ...]


def assign(names: Iterable[str], path: str, *, prefix: Optional[str] = None) -> Assignment:
    """Finds a DLRM's weights among the tensor names of a file, also after prefixes such as `network.`.

    Args:
      names: tensor names.
      path: the file, for errors.
      prefix: the prefix of the weights wanted, when the file holds more than one network.

    Raises:
      CheckpointError: no weights, or more than one set of them.
    """
    names = tuple(names)
    for naming in NAMINGS.values():
        matched = {name: naming.match(name) for name in names}
        found = sorted({match[0] for match in matched.values() if match})
        if found:
            break
    else:
        shown = ", ".join(names[:3])
        raise CheckpointError(
            f"{path}: holds no DLRM: wanted tensors such as {MINDSPORE.name(Weight('bottom_mlp', 0, 'kernel'))}. Received {shown}"
        )
    chosen = _choose(found, path) if prefix is None else prefix
    if chosen not in found:
        raise CheckpointError(f"{path}: no weights with prefix {chosen!r}; there are {', '.join(map(repr, found))}")
    weights, state, other = {}, {}, []
    for name, match in matched.items():
        if match is None:
            other.append(name)
        elif match[0] == chosen:
            weights[match[1]] = name
        else:
            slot = match[0][: len(match[0]) - len(chosen)] if match[0].endswith(chosen) else match[0]
            state[slot.rstrip("."), match[1]] = name
    return Assignment(naming, chosen, naming.number_last_layers(weights), state, tuple(other))


def _choose(prefixes: list[str], path: str) -> str:
    """The prefix of the weights themselves: none, as upstream writes them, or the only one that is not an optimizer's."""
    candidates = [p for p in prefixes if STATE_PREFIXES.isdisjoint(p.split("."))]
    if "" in candidates:
        return ""
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise CheckpointError(f"{path}: holds only optimizer state ({', '.join(p.rstrip('.') for p in prefixes)}), no weights")
    raise CheckpointError(
        f"{path}: holds {len(candidates)} sets of DLRM weights, with prefixes {', '.join(map(repr, candidates))}: "
        "say which one with --prefix"
    )
