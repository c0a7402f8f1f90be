"""Versions come and go while the server runs."""

import os
import shutil
import threading

import pytest
from serving_models import INPUTS, bias, failure, served
from tensorflow_serving.apis import model_pb2
from waiting import PATIENCE, eventually

from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer
from dlrm_tf.serve.manager import ModelManager
from dlrm_tf.serve.model import ModelConfig
from dlrm_tf.serve.servable import Servable
from dlrm_tf.versions import versions_on_disk


def states(client):
    return {status["version"]: status["state"] for status in client.status()}


def test_new_version_swaps_in_and_deleting_it_rolls_back(save_linear, start):
    base = save_linear(1)
    with Client(start(model_base_path=base).target) as client:
        assert bias(client) == 1
        save_linear(2)
        eventually(lambda: bias(client) == 2)
        eventually(lambda: states(client) == {2: "AVAILABLE", 1: "END"})
        shutil.rmtree(os.path.join(base, "2"))
        eventually(lambda: bias(client) == 1)
        eventually(lambda: states(client) == {2: "END", 1: "AVAILABLE"})


def test_broken_version_never_displaces_the_good_one_and_a_repaired_one_is_tried_anew(save_linear, start):
    base = save_linear(1)
    with Client(start(model_base_path=base, max_num_load_retries=0).target) as client:
        os.mkdir(os.path.join(base, "2"))
        eventually(lambda: states(client).get(2) == "END")
        assert bias(client) == 1 and states(client)[1] == "AVAILABLE"
        assert "Could not find SavedModel .pb" in client.status()[0]["error_message"]
        assert client.status()[0]["error_code"] == 5  # NOT_FOUND
        os.rmdir(os.path.join(base, "2"))
        eventually(lambda: states(client) == {1: "AVAILABLE"})
        save_linear(2)
        eventually(lambda: bias(client) == 2)


def test_a_version_still_being_copied_is_retried(save_linear, start):
    base = save_linear(1)
    with Client(start(model_base_path=base, load_retry_interval_micros=50_000, max_num_load_retries=1000).target) as client:
        os.mkdir(os.path.join(base, "2"))
        eventually(lambda: 2 in states(client))
        save_linear(3, bias=2, model="elsewhere")
        other = os.path.join(os.path.dirname(base), "elsewhere", "3")
        for name in sorted(os.listdir(other), reverse=True):
            os.rename(os.path.join(other, name), os.path.join(base, "2", name))
        eventually(lambda: bias(client) == 2)


@pytest.mark.slow
def test_no_request_fails_while_versions_swap(save_linear, start):
    base = save_linear(1)
    server = start(model_base_path=base)
    seen, stop = set(), threading.Event()

    def call():
        with Client(server.target) as client:
            while not stop.is_set():
                seen.add(failure(lambda: seen.add(bias(client))))

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for version in range(2, 8):
        save_linear(version)
        eventually(lambda version=version: version in seen)
        shutil.rmtree(os.path.join(base, str(version - 1)))
    stop.set()
    for caller in callers:
        caller.join()
    assert seen == {"", *range(1, 8)}


def test_a_version_is_kept_until_its_last_request_has_left(save_linear):
    base = save_linear(1)
    manager = ModelManager(lambda name, version, path: Servable(path), poll_seconds=0)
    manager.start([ModelConfig(name="dlrm", base_path=base, model_platform="tensorflow")])
    spec = model_pb2.ModelSpec(name="dlrm")
    with manager.servable(spec) as (servable, version):
        assert version == 1
        save_linear(2)
        manager.poll()
        assert {v.number: v.state for v in manager.status(spec)} == {2: 30, 1: 40}
        signature = servable.signatures["serving_default"]
        feeds = tuple(signature.inputs[name].name for name in INPUTS)
        (logit,) = servable.run(feeds, tuple(INPUTS.values()), (signature.outputs["logit"].name,))
        assert logit[0, 0] == 1.0
    eventually(lambda: {v.number: v.state for v in manager.status(spec)} == {2: 30, 1: 50})
    manager.stop()


def test_several_models_load_at_a_time(tmp_path):
    """Each load waits until the other has begun."""
    both = threading.Barrier(2, timeout=PATIENCE)

    class Loaded:
        signatures, close = {}, lambda self: None

    def load(name, version, path):
        both.wait()
        return Loaded()

    configs = [ModelConfig(name=name, base_path=str(tmp_path / name), model_platform="tensorflow") for name in ("a", "b")]
    for config in configs:
        os.makedirs(os.path.join(config.base_path, "1"))
    manager = ModelManager(load, poll_seconds=0, load_threads=2)
    manager.start(configs)
    assert [manager.status(model_pb2.ModelSpec(name=config.name))[0].state for config in configs] == [30, 30]
    manager.stop()


def test_folders_that_are_no_versions_are_ignored(tmp_path):
    for name in ("1", "00017", ".3.part", "abc", "-4", "5x", "\u0663", "99999999999999999999999"):
        (tmp_path / name).mkdir()
    (tmp_path / "8").write_text("a file")
    assert versions_on_disk(str(tmp_path)) == {1: str(tmp_path / "1"), 17: str(tmp_path / "00017")}
    assert versions_on_disk(str(tmp_path / "nowhere")) == {}


def test_a_base_path_that_does_not_exist_yet_is_waited_for(save_linear, tmp_path):
    server = ModelServer(model_name="dlrm", model_base_path=str(tmp_path / "dlrm"), file_system_poll_wait_seconds=0.05)
    starter = threading.Thread(target=server.start)
    starter.start()
    save_linear(1)
    starter.join(120)
    assert not starter.is_alive()
    with server:
        assert served(server.target) == 1


def test_start_says_what_is_missing(save_linear, tmp_path):
    with pytest.raises(ServingError, match=r"no version in .*nowhere \(wanted .*nowhere/1/saved_model.pb\)"):
        ModelServer(model_name="dlrm", model_base_path=str(tmp_path / "nowhere")).start(timeout=0)
    with pytest.raises(UsageError, match="absolute path"):
        ModelServer(model_name="dlrm", model_base_path="saved_models/dlrm")
    with pytest.raises(UsageError, match="--model_base_path"):
        ModelServer(model_name="dlrm")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"not a protobuf")
    with pytest.raises(ServingError, match="broken/1: the SavedModel does not load"):
        ModelServer(model_name="dlrm", model_base_path=str(tmp_path / "broken")).start()


def test_a_port_in_use_is_said_before_the_model_loads(save_linear, start):
    base = save_linear(1)
    server = start(model_base_path=base)
    with pytest.raises(ServingError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        ModelServer(model_name="dlrm", model_base_path=base, port=server.port).start()
