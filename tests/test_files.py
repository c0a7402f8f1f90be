"""Files and folders that appear whole or not at all."""

import os
import stat

import pytest

from dlrm_tf.errors import DLRMError
from dlrm_tf.files import atomic_dir, atomic_file


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        with open(temporary, "w") as f:
            f.write("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_finished_write_replaces_the_file_with_an_ordinary_mode(tmp_path):
    path = tmp_path / "sub" / "a.bin"
    with atomic_file(path) as temporary, open(temporary, "w") as f:
        f.write("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_a_folder_appears_at_the_end_only(tmp_path):
    target = tmp_path / "m" / "1"
    with atomic_dir(target) as folder:
        with open(os.path.join(folder, "x"), "w") as f:
            f.write("x")
        # A model server polls for numbered folders: the unfinished one must not look like a version.
        assert not any(name.isdigit() for name in os.listdir(tmp_path / "m"))
    assert (target / "x").read_text() == "x"
    with pytest.raises(FileExistsError, match="already exists"), atomic_dir(target):
        pass


def test_a_failed_folder_is_removed(tmp_path):
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "1") as folder:
        os.makedirs(os.path.join(folder, "deep"))
        raise RuntimeError
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("write failed: No space left on device [Op]")]
)
def test_a_full_disk_is_said_with_the_files_name(tmp_path, error):
    for context, path in ((atomic_file, tmp_path / "a.bin"), (atomic_dir, tmp_path / "d")):
        with pytest.raises(DLRMError, match=f"{path}: no space left on the disk"), context(path):
            raise error
    assert os.listdir(tmp_path) == []


def test_a_place_that_takes_no_files_is_named(tmp_path):
    with pytest.raises(OSError) as caught, atomic_file("/proc/dlrm.bin"):
        pass
    assert caught.value.filename == "/proc/dlrm.bin"
    with pytest.raises(IsADirectoryError), atomic_file(tmp_path):
        pass
