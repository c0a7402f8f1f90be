"""The pairwise dot products of the dense vector and the embeddings."""

from typing import Optional

from dlrm_tf.keras2 import recommenders, tensorflow
from dlrm_tf.model.pairs import pair_positions

tf = tensorflow()
tfrs = recommenders()


class DotInteraction(tfrs.layers.feature_interaction.DotInteraction):
    """TFRS's DotInteraction with the same result and a static output shape (Naumov et al. 2019, section 2.1.3).

    TFRS picks the triangle with `boolean_mask`, whose inner shape is dynamic: slow, and not compilable on Ascend or TPU.
    For inference the triangle is one gather with constant indices: few operations, which decide the time of a batch of one row.
    For training it is one slice per row of the triangle, which copies runs instead of single numbers; the gradient puts the
    triangle back into a matrix L and is (L + L^T) T, instead of a scatter.

    Args:
      vectors: number V of interacting vectors (`DLRMConfig.num_vectors`); at least 2, or with self-interaction 1.
      self_interaction: also keep every vector's product with itself.
    """

    def __init__(self, vectors: int, self_interaction: bool = False, **kwargs):
        super().__init__(self_interaction=self_interaction, **kwargs)
        self._positions = pair_positions(vectors, self_interaction)
        # Pairs kept in every row of the Gram matrix.
        self._lengths = [row + int(self_interaction) for row in range(vectors)]
        self._vectors = vectors

    def call(self, stack: tf.Tensor, training: Optional[bool] = None) -> tf.Tensor:
        """Dot products of all pairs.

        Args:
          stack: `[batch_size, V, D]`.
          training: whether a gradient will be asked for; the result is the same.

        Returns:
          `[batch_size, pairs]`, pairs = V(V-1)/2, or V(V+1)/2 with self-interaction.
        """
        return self._triangle(stack) if training else tf.gather(self._gram(stack), self._positions, axis=1)

    def _gram(self, stack):
        # [B, V, V] -> [B, V^2]
        return tf.reshape(tf.matmul(stack, stack, transpose_b=True), [-1, self._vectors**2])

    def _triangle(self, stack):
        @tf.custom_gradient
        def triangle(vectors):
            gram, n = self._gram(vectors), self._vectors
            pairs = tf.concat([gram[:, i * n : i * n + length] for i, length in enumerate(self._lengths) if length], axis=1)

            def gradient(upstream):
                zeros, pieces, start = tf.zeros([tf.shape(upstream)[0], n], upstream.dtype), [], 0
                for length in self._lengths:
                    pieces += [upstream[:, start : start + length], zeros[:, length:]]
                    start += length
                # [B, V, V]; a pair's product hands its gradient to both of its vectors, the diagonal's to one twice.
                lower = tf.reshape(tf.concat(pieces, axis=1), [-1, n, n])
                return tf.matmul(lower, vectors) + tf.matmul(lower, vectors, transpose_a=True)

            return pairs, gradient

        return triangle(stack)
