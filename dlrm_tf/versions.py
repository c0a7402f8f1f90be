"""A model's numbered version folders, as TensorFlow Serving names them and what is in them."""

import os

# Below a version folder: requests that a server runs before the version serves, a TFRecord file of `PredictionLog`.
WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")


def versions_on_disk(base_path: str) -> dict[int, str]:
    """Version number -> folder, for every folder of a model whose name is a number; empty when `base_path` is no folder.

    Leading zeros are allowed (`00017` is version 17). Other names are ignored; half-written exports have such names.

    Args:
      base_path: folder of the model.
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
