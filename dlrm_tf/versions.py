"""Numbered version folders of a model, as TensorFlow Serving names them and what is in them."""

import os

# In a version's folder: requests that a server runs before the version serves, a TFRecord file of PredictionLog.
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


def versions_on_disk(base_path: str) -> dict[int, str]:
    """Version number -> folder, for every folder of `base_path` whose name is a number; empty when there is no base path.

    Leading zeros are allowed (`00017` is version 17); anything else is ignored, as half-written exports have other names.
    """
    found = {}
    try:
        entries = list(os.scandir(base_path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    for entry in entries:
        name = entry.name
        if name.isascii() and name.isdigit() and int(name) < 2**63 and entry.is_dir():
            found[int(name)] = entry.path
    return found
