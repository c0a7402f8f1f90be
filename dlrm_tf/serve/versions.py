"""Which versions of a model are on the disk, and which of them its policy wants served."""

import os

from tensorflow_serving.config import file_system_storage_path_source_pb2 as storage

VersionPolicy = storage.FileSystemStoragePathSourceConfig.ServableVersionPolicy


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


def aspired_versions(policy: VersionPolicy, on_disk) -> set[int]:
    """The versions of `on_disk` that `policy` wants served: the latest one unless it says otherwise."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return set(on_disk)
    if choice == "specific":
        return set(policy.specific.versions) & set(on_disk)
    count = (policy.latest.num_versions if choice == "latest" else 0) or 1
    return set(sorted(on_disk)[-count:])
