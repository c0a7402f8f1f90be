"""Makes sure `tf.keras` is Keras 2, which TFRS and every tf.distribute strategy need, or says why it can't be."""

import functools


@functools.cache
def tensorflow():
    """The tensorflow module, with `tf.keras` being Keras 2.

    Raises:
      ImportError: TensorFlow is missing, or another import has already made `tf.keras` Keras 3.
    """
    try:
        import tensorflow as tf
    except ModuleNotFoundError as e:
        raise ImportError("dlrm_tf's models need TensorFlow: pip install dlrm_tf") from e
    # tf_keras is Keras 2 by definition and carries no version here; TF 2.6.5's own Keras says 2.6.0.
    version = "2" if tf.keras.Model.__module__.startswith("tf_keras.") else tf.keras.__version__
    if not version.startswith("2"):
        raise ImportError(
            f"dlrm_tf needs tf.keras to be Keras 2, but it already is Keras {version}: import dlrm_tf before tensorflow, "
            "or set TF_USE_LEGACY_KERAS=1 before the program starts (Keras 3 users: dlrm_tf.keras3)"
        )
    return tf


def recommenders():
    """The tensorflow_recommenders module, loaded after `tf.keras` was checked.

    Raises:
      ImportError: see `tensorflow`.
    """
    tensorflow()
    import tensorflow_recommenders as tfrs

    return tfrs
