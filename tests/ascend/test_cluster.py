"""The plugin's environment: both ways of telling a cluster, and everything that is wrong with one."""

import json

import pytest

from dlrm_tf.ascend.cluster import Cluster
from dlrm_tf.errors import AscendError

CHIEF = {
    "CM_CHIEF_IP": "192.168.1.1",
    "CM_CHIEF_PORT": "6000",
    "CM_CHIEF_DEVICE": "0",
    "CM_WORKER_SIZE": "8",
    "CM_WORKER_IP": "192.168.1.2",
}


@pytest.fixture
def table(tmp_path):
    """Variables of rank 1 of 4, on two servers."""
    servers = [
        {"server_id": f"10.0.0.{s}", "device": [{"device_id": str(d), "rank_id": str(2 * s + d - 4)} for d in (4, 5)]}
        for s in (0, 1)
    ]
    path = tmp_path / "rank_table.json"
    path.write_text(json.dumps({"version": "1.0", "server_count": "2", "server_list": servers}))
    return {"RANK_TABLE_FILE": str(path), "RANK_ID": "1", "RANK_SIZE": "4"}


def test_alone():
    assert Cluster.from_environment({}) == Cluster(1, 0, 0)
    assert Cluster.from_environment({"ASCEND_DEVICE_ID": "3"}) == Cluster(1, 0, 3)
    assert Cluster.from_environment({"RANK_SIZE": "1", "RANK_ID": "0", "ASCEND_DEVICE_ID": "2"}) == Cluster(1, 0, 2)


def test_rank_table(table):
    assert Cluster.from_environment(table) == Cluster(4, 1, 5)
    assert Cluster.from_environment({**table, "ASCEND_DEVICE_ID": "0"}) == Cluster(4, 1, 0)


def test_chief():
    assert Cluster.from_environment({**CHIEF, "ASCEND_DEVICE_ID": "3"}) == Cluster(8, None, 3)
    assert Cluster.from_environment({**CHIEF, "CM_WORKER_SIZE": "1"}) == Cluster(1, 0, 0)


@pytest.mark.parametrize(
    "variables, message",
    [
        (
            {**CHIEF, "RANK_ID": "0", "RANK_SIZE": "8"},
            "RANK_ID, RANK_SIZE and CM_CHIEF_IP, CM_CHIEF_PORT, .* are set: .* never both",
        ),
        ({"RANK_SIZE": "8"}, "RANK_SIZE=8 is set, but not RANK_TABLE_FILE, RANK_ID"),
        ({"RANK_ID": "3"}, "RANK_ID is set, but not RANK_SIZE"),
        ({"RANK_SIZE": "eight"}, "RANK_SIZE: wanted a whole number, 1 or more. Received 'eight'"),
        ({"ASCEND_DEVICE_ID": "-1"}, "ASCEND_DEVICE_ID: wanted a whole number, 0 or more. Received '-1'"),
        ({"CM_CHIEF_IP": "192.168.1.1"}, "not CM_CHIEF_PORT, CM_CHIEF_DEVICE, CM_WORKER_SIZE, CM_WORKER_IP"),
        (CHIEF, "CM_WORKER_SIZE=8 is set, but not ASCEND_DEVICE_ID"),
        ({**CHIEF, "CM_CHIEF_PORT": "70000"}, "CM_CHIEF_PORT: wanted a whole number, 0 to 65520. Received '70000'"),
    ],
)
def test_wrong_variables(variables, message):
    with pytest.raises(AscendError, match=message):
        Cluster.from_environment(variables)


@pytest.mark.parametrize(
    "content, changes, message",
    [
        (None, {"RANK_ID": "4"}, "RANK_ID: wanted a whole number, 0 to 3. Received '4'"),
        (None, {"RANK_SIZE": "8"}, r"wanted ranks 0 to 7 \(RANK_SIZE=8\). Received 4 ranks: \[0, 1, 2, 3\]"),
        (None, {"RANK_TABLE_FILE": "/none/table.json"}, "RANK_TABLE_FILE: /none/table.json: can't be read"),
        (b"\xff\xfe", {}, "can't be read .not UTF-8"),
        (b"{", {}, r"wanted JSON with server_list"),
        (b"[]", {}, r"wanted JSON with server_list"),
        (b'{"server_list": [{"device": [{"rank_id": "0"}]}]}', {}, r"KeyError: 'device_id'"),
    ],
)
def test_wrong_rank_tables(table, content, changes, message):
    if content is not None:
        with open(table["RANK_TABLE_FILE"], "wb") as f:
            f.write(content)
    with pytest.raises(AscendError, match=message):
        Cluster.from_environment({**table, **changes})
