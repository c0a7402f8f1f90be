"""The stand-in plugin: put on the path in this process, or installed for processes that a test starts."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

FAKE = pathlib.Path(__file__).parent / "fake"
_PREFIXES = ("npu_device", "npu_bridge", "hccl")
_VARIABLES = ("RANK_", "CM_", "ASCEND_", "FAKE_", "NPU_", "JOB_ID")


@pytest.fixture
def clean_environment(monkeypatch):
    """No variable of the plugin is set."""
    for name in [name for name in os.environ if name.startswith(_VARIABLES)]:
        monkeypatch.delenv(name)


@pytest.fixture
def fake_plugin(clean_environment, monkeypatch):
    """The stand-in's packages can be imported in this process; afterwards they are gone."""
    monkeypatch.syspath_prepend(str(FAKE))
    yield FAKE
    for name in [name for name in sys.modules if name.split(".")[0] in _PREFIXES]:
        del sys.modules[name]


class Processes:
    """Starts Python processes that have the stand-in installed."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.site = folder / "site"

    def install(self, version: str) -> None:
        """The stand-in as a distribution of this version, and of the same for npu_bridge."""
        for name in ("npu_device", "npu_bridge"):
            info = self.site / f"{name}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def start(self, arguments: list, journal: str = "journal", **variables) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_VARIABLES)}
        environment.update(
            PYTHONPATH=os.pathsep.join([str(FAKE), str(FAKE.parent), str(self.site), environment.get("PYTHONPATH", "")]),
            FAKE_NPU_JOURNAL=str(self.folder / journal),
            FAKE_HCCL_FOLDER=str(self.folder),
            TF_CPP_MIN_LOG_LEVEL="3",
            **variables,
        )
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            cwd=self.folder,
        )

    def run(self, *arguments, **variables):
        """`(exit code, stdout, stderr)` of one process."""
        process = self.start(list(arguments), **variables)
        out, err = process.communicate(timeout=600)
        return process.returncode, out, err

    def run_ranks(self, size: int, *arguments, **variables) -> list:
        """The same for `size` processes in a rank table's cluster; `{rank}` in an argument becomes the rank."""
        table = self.folder / "rank_table.json"
        devices = [{"device_id": str(i), "device_ip": f"192.168.1.{i}", "rank_id": str(i)} for i in range(size)]
        table.write_text(json.dumps({"version": "1.0", "server_count": "1", "server_list": [{"device": devices}]}))
        (self.folder / "port").unlink() if (self.folder / "port").exists() else None
        cluster = {"RANK_TABLE_FILE": str(table), "RANK_SIZE": str(size), **variables}
        processes = [
            self.start([str(a).replace("{rank}", str(i)) for a in arguments], f"journal{i}", RANK_ID=str(i), **cluster)
            for i in range(size)
        ]
        results = [process.communicate(timeout=600) for process in processes]
        return [(process.returncode, *result) for process, result in zip(processes, results)]

    def journal(self, name: str = "journal") -> list:
        """What the stand-in was asked, in order."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]


@pytest.fixture
def processes(tmp_path):
    """Processes with the stand-in, as a plugin for the TensorFlow that is here."""
    from dlrm_tf.ascend.plugin import installed

    made = Processes(tmp_path)
    made.install(installed().tensorflow)
    return made
