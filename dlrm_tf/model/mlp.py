"""A stack of dense layers whose inputs can be observed."""

from typing import Callable, Optional

from dlrm_tf.keras2 import recommenders, tensorflow

tf = tensorflow()
tfrs = recommenders()


class MLP(tfrs.layers.blocks.MLP):
    """TFRS's MLP, with access to its Dense layers and to what each of them reads."""

    def dense_layer(self, layer: int) -> tf.keras.layers.Dense:
        """The Dense layer with this number, from 0."""
        return self._sublayers[layer]

    def call(
        self,
        x: tf.Tensor,
        observe: Optional[Callable[[int, tf.Tensor], None]] = None,
        drop: Optional[Callable[[int, tf.Tensor], tf.Tensor]] = None,
    ) -> tf.Tensor:
        """Runs all layers.

        Args:
          x: `[batch_size, in]`.
          observe: function `(layer, its input)`, called before each layer runs.
          drop: function `(layer, its output)` that makes what the next layer reads; not called for the last layer.

        Returns:
          `[batch_size, units[-1]]`.
        """
        for i, layer in enumerate(self._sublayers):
            if observe is not None:
                observe(i, x)
            x = layer(x)
            if drop is not None and i < len(self._sublayers) - 1:
                x = drop(i, x)
        return x
