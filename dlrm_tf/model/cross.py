"""The cross layers of DCNv2, a stack of TFRS's."""

from typing import Any, Callable, Optional

from dlrm_tf.config import DLRMConfig
from dlrm_tf.keras2 import recommenders, tensorflow

tf = tensorflow()
tfrs = recommenders()


class Cross(tfrs.layers.dcn.Cross):
    """TFRS's Cross, with access to its Dense layers: `x0 * (W x + b) + x`, and `x0 * (W (P x) + b) + x` at low rank."""

    def dense_layers(self) -> dict[str, tf.keras.layers.Dense]:
        """Its Dense layers in the order they run; the names are those of `DLRMConfig.dense_shapes`."""
        if self._projection_dim is None:
            return {"cross": self._dense}
        return {"cross_projection": self._dense_u, "cross": self._dense_v}


class CrossNetwork(tf.keras.layers.Layer):
    """Cross layers one after another (DCNv2, Wang et al. 2021, https://arxiv.org/abs/2008.13535, section 3.1).

    Args:
      config: a configuration with cross interaction.
      **kwargs: of Keras's layers.
    """

    def __init__(self, config: DLRMConfig, **kwargs):
        super().__init__(**kwargs)
        self._sublayers = [Cross(config.cross_rank) for _ in range(config.cross_layers)]
        for layer in self._sublayers:
            # Makes its Dense layers; their weights are made in the first call, after the initializers are set.
            layer.build(tf.TensorShape([None, config.interaction_dim]))

    def dense_layer(self, part: str, layer: int) -> tf.keras.layers.Dense:
        """The Dense layer `part`, `"cross"` or `"cross_projection"`, of cross layer number `layer`."""
        return self._sublayers[layer].dense_layers()[part]

    def call(self, x0: tf.Tensor, observe: Optional[Callable[[str, int, Any], None]] = None) -> tf.Tensor:
        """Runs all layers.

        Args:
          x0: `[batch_size, V D]`, V as in `DLRMConfig.num_vectors`.
          observe: function `(part, layer, its input)`, called with what each Dense layer reads, before its cross layer runs.

        Returns:
          `[batch_size, V D]`.
        """
        x = x0
        for i, layer in enumerate(self._sublayers):
            if observe is not None:
                read = x
                for part, dense in layer.dense_layers().items():
                    observe(part, i, read)
                    read = dense(read)
            x = layer(x0, x)
        return x
