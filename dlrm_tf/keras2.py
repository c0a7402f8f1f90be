"""Loads TensorFlow with Keras 2 as `tf.keras`, which TFRS and every tf.distribute strategy need, or says why it can't."""

import contextlib
import functools
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from dlrm_tf.errors import require

# Set by the command line: hold back TensorFlow's C++ start-up messages, which no log level silences.
quiet = False


@functools.cache
def any_keras_tensorflow() -> Any:
    """The tensorflow module, whichever Keras it has: for code that uses no Keras, such as the model server and its client.

    Raises:
      MissingExtraError: TensorFlow is not installed.
    """
    with _stderr_held() if quiet else contextlib.nullcontext():
        tf = _load("tensorflow")
        if quiet:
            # Looks for a GPU now, while messages about a missing one are held back.
            tf.config.list_physical_devices()
    return tf


@functools.cache
def tensorflow() -> Any:
    """The tensorflow module, with `tf.keras` being Keras 2.

    Raises:
      MissingExtraError: TensorFlow is not installed.
      ImportError: `tf.keras` is Keras 3 already, because something else imported TensorFlow first.
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


def _load(module: str) -> Any:
    # On Python 3.9 the only TensorFlow for dlrm_tf is the Ascend plugin's.
    return require(module, "" if sys.version_info >= (3, 10) else "ascend")


@contextlib.contextmanager
def _stderr_held() -> Iterator[None]:
    """Holds what C++ code writes to the standard error stream; shows it only if an exception passes."""
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


def recommenders() -> Any:
    """The tensorflow_recommenders module, loaded after `tf.keras` was checked.

    Raises:
      MissingExtraError: TensorFlow or TensorFlow Recommenders is not installed.
      ImportError: `tf.keras` is Keras 3 already.
    """
    tensorflow()
    return _load("tensorflow_recommenders")
