"""How the dense vector and the embeddings meet: pairwise dot products, or plain concatenation."""

import numpy as np

from dlrm_tf.keras2 import recommenders, tensorflow

tf = tensorflow()
tfrs = recommenders()


def triangle_pairs(vectors: int, self_interaction: bool) -> tuple:
    """Row and column of every kept pair, strict lower triangle row-major (`j <= i` with self-interaction)."""
    return np.tril_indices(vectors, 0 if self_interaction else -1)


class DotInteraction(tfrs.layers.feature_interaction.DotInteraction):
    """TFRS's DotInteraction with the same result and a static output shape (Naumov et al. 2019, section 2.1.3).

    TFRS picks the triangle with `boolean_mask`, whose inner shape is dynamic: slow, and not compilable on Ascend or TPU.
    Here it is a gather with constant indices. Its gradient is one gather and one product with the symmetric matrix
    (dZ + dZ^T) instead of a scatter.

    Args:
      vectors: number of interacting vectors (F + 1).
      self_interaction: also keep every vector's product with itself.
    """

    def __init__(self, vectors: int, self_interaction: bool = False, **kwargs):
        super().__init__(self_interaction=self_interaction, **kwargs)
        rows, columns = triangle_pairs(vectors, self_interaction)
        # Position in the flat Gram matrix of every kept pair, and back: which pair an entry belongs to.
        self._flat = (rows * vectors + columns).astype(np.int32)
        pair = np.zeros((vectors, vectors), np.int32)
        pair[rows, columns] = pair[columns, rows] = np.arange(len(rows))
        self._pair = pair.reshape(-1)
        # d(t_i . t_i) = 2 t_i; without self-interaction the diagonal gets nothing.
        weight = np.ones((vectors, vectors), np.float32)
        np.fill_diagonal(weight, 2.0 if self_interaction else 0.0)
        self._weight = weight
        self._vectors = vectors

    def call(self, stack):
        """Dot products of all pairs.

        Args:
          stack: `[batch_size, F + 1, D]`.

        Returns:
          `[batch_size, pairs]`, pairs = (F+1)F/2, or (F+1)(F+2)/2 with self-interaction.
        """

        @tf.custom_gradient
        def triangle(vectors):
            # [B, F+1, F+1]
            gram = tf.matmul(vectors, vectors, transpose_b=True)
            # [B, (F+1)^2] -> [B, pairs]
            pairs = tf.gather(tf.reshape(gram, [-1, self._vectors**2]), self._flat, axis=1)

            def gradient(upstream):
                both = tf.reshape(tf.gather(upstream, self._pair, axis=1), [-1, self._vectors, self._vectors])
                return tf.matmul(both * tf.cast(self._weight, both.dtype), vectors)

            return pairs, gradient

        return triangle(stack)


class CatInteraction(tf.keras.layers.Layer):
    """`[batch_size, F + 1, D]` flattened without its first vector, which the model concatenates itself."""

    def call(self, stack):
        """Returns `[batch_size, F * D]`."""
        embeddings = stack[:, 1:]
        return tf.reshape(embeddings, [-1, embeddings.shape[1] * embeddings.shape[2]])
