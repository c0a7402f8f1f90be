"""The files of an exported version beside its graph: metadata and vocabulary, which TF Serving ignores."""

import json
import os
from typing import Any

from dlrm_tf.errors import DataError

# JSON: configuration, fingerprints, how dense features are made.
METADATA = os.path.join("assets.extra", "dlrm_tf.json")
VOCABULARY = os.path.join("assets.extra", "vocabulary")


def read_metadata(version_dir: str) -> dict[str, Any]:
    """The JSON of the version in the folder `version_dir`; empty where there is none, as in SavedModels of other programs.

    Raises:
      DataError: the file is damaged.
    """
    path = os.path.join(version_dir, METADATA)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return dict(json.load(file))
    except (ValueError, TypeError, RecursionError) as e:
        raise DataError(f"{path}: damaged metadata ({e})") from e
