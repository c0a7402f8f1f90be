"""Makes sure `tf.keras` is Keras 2, which TFRS and every tf.distribute strategy need, or says why it can't be."""

import contextlib
import functools
import os
import sys
import tempfile

# The command line sets this: TensorFlow's C++ start-up messages, which no log level silences, are then held back.
quiet = False


@functools.cache
def any_keras_tensorflow():
    """The tensorflow module, whichever Keras it has: for what uses none, as the model server and its client.

    Raises:
      ImportError: TensorFlow is missing.
    """
    with _stderr_held() if quiet else contextlib.nullcontext():
        try:
            import tensorflow as tf
        except ModuleNotFoundError as e:
            raise ImportError("dlrm_tf's models need TensorFlow: pip install dlrm_tf") from e
        if quiet:
            # Looks for a GPU now, while what it says about finding none is held.
            tf.config.list_physical_devices()
    return tf


@functools.cache
def tensorflow():
    """The tensorflow module, with `tf.keras` being Keras 2.

    Raises:
      ImportError: TensorFlow is missing, or another import has already made `tf.keras` Keras 3.
    """
    tf = any_keras_tensorflow()
    # tf_keras is Keras 2 by definition and carries no version here; TF 2.6.5's own Keras says 2.6.0.
    version = "2" if tf.keras.Model.__module__.startswith("tf_keras.") else tf.keras.__version__
    if not version.startswith("2"):
        raise ImportError(
            f"dlrm_tf needs tf.keras to be Keras 2, but it already is Keras {version}: import dlrm_tf before tensorflow, "
            "or set TF_USE_LEGACY_KERAS=1 before the program starts (Keras 3 users: dlrm_tf.keras3)"
        )
    return tf


@contextlib.contextmanager
def _stderr_held():
    """Keeps what C++ code writes to the standard error stream; shows it only if an exception passes."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def recommenders():
    """The tensorflow_recommenders module, loaded after `tf.keras` was checked.

    Raises:
      ImportError: see `tensorflow`.
    """
    tensorflow()
    import tensorflow_recommenders as tfrs

    return tfrs
