"""Which of the versions on the disk a model's policy wants served."""

from tensorflow_serving.config import file_system_storage_path_source_pb2 as storage

VersionPolicy = storage.FileSystemStoragePathSourceConfig.ServableVersionPolicy


def aspired_versions(policy: VersionPolicy, on_disk) -> set[int]:
    """The versions of `on_disk` that `policy` wants served: the latest one unless it says otherwise."""
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return set(on_disk)
    if choice == "specific":
        return set(policy.specific.versions) & set(on_disk)
    count = (policy.latest.num_versions if choice == "latest" else 0) or 1
    return set(sorted(on_disk)[-count:])
