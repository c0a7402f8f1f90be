"""HandleReloadConfigRequest, labels, policies and the configuration file, while the server runs."""

import os
import shutil

import grpc
import pytest
from serving_models import config_text, failure, model, refused, served
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc
from waiting import eventually

from dlrm_tf.errors import ServingError
from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer


@pytest.fixture
def write(tmp_path):
    def write(*models):
        path = tmp_path / "models.config"
        path.write_text(config_text(*models))
        return str(path)

    return write


def reload(server, file):
    with Client(server.target) as client:
        client.reload(file)


def test_models_are_added_and_removed(save_linear, write, start):
    one, two = save_linear(1, model="one"), save_linear(2, model="two")
    server = start(model_config_file=write(model("one", one)))
    reload(server, write(model("one", one), model("two", two)))
    assert (served(server.target, "one"), served(server.target, "two")) == (1, 2)
    reload(server, write(model("two", two)))
    assert served(server.target, "two") == 2
    assert "NOT_FOUND: Servable not found for request: Latest(one)" in failure(served, server.target, "one")
    with Client(server.target, model_name="one") as client:
        assert [status["version"] for status in client.status()] == [1]
    reload(server, write(model("one", one)))
    assert served(server.target, "one") == 1


def test_policies_change(save_linear, write, start):
    base = save_linear(1)
    for version in (2, 3):
        save_linear(version)
    specific = "model_version_policy { specific { versions: 1 versions: 2 versions: 9 } }"
    server = start(model_config_file=write(model("dlrm", base, policy=specific)))
    assert [served(server.target, version=version) for version in (1, 2)] == [1, 2] and served(server.target) == 2
    reload(server, write(model("dlrm", base, policy="model_version_policy { all {} }")))
    assert [served(server.target, version=version) for version in (1, 2, 3)] == [1, 2, 3]
    reload(server, write(model("dlrm", base, policy="model_version_policy { latest { num_versions: 2 } }")))
    assert [served(server.target, version=version) for version in (2, 3)] == [2, 3]
    assert "Specific(dlrm, 1)" in failure(served, server.target, version=1)


def test_a_label_that_is_left_out_is_gone_and_one_of_no_version_is_refused(save_linear, write, start):
    base = save_linear(1)
    options = {"allow_version_labels_for_unavailable_models": True}
    server = start(model_config_file=write(model("dlrm", base, [("stable", 1), ("canary", 1)])), **options)
    reload(server, write(model("dlrm", base, [("stable", 1)])))
    assert "INVALID_ARGUMENT: Unrecognized servable version label: canary" in failure(served, server.target, label="canary")
    message = failure(reload, server, write(model("dlrm", base, [("stable", 7)])))
    assert "FAILED_PRECONDITION: Request to assign label to version 7 of model dlrm, which is not currently available" in message
    assert served(server.target, label="stable") == 1


def test_labels_at_the_start_need_the_flag(save_linear, write):
    file = write(model("dlrm", save_linear(1), [("stable", 1)]))
    with pytest.raises(ServingError, match="Request to assign label to version 1 of model dlrm"):
        ModelServer(model_config_file=file).start()


def test_refused_and_failed_reloads_leave_everything_as_it_was(save_linear, write, start, tmp_path):
    base, other = save_linear(1), save_linear(5, model="other")
    server = start(model_config_file=write(model("dlrm", base)))
    for models, message in (
        ([model("dlrm", "dlrm")], "Expected model dlrm to have an absolute path or URI; got base_path()=dlrm"),
        ([model("dlrm", base), model("dlrm", other)], "Illegal to list model dlrm multiple times in config list"),
        ([model("dlrm", base, platform='model_platform: "other"')], "Illegal to change a model's platform."),
        ([model("new", base, platform='model_platform: "tflite"')], "Model new requests unsupported platform tflite"),
        ([model("new", base, platform="")], "Illegal setting neither"),
    ):
        assert f"INVALID_ARGUMENT: {message}" in failure(reload, server, write(*models))
    (tmp_path / "broken" / "1").mkdir(parents=True)
    broken = write(model("other", other), model("new", tmp_path / "broken"), model("gone", tmp_path / "gone"))
    message = failure(reload, server, broken)
    assert "UNKNOWN: 2 servable(s) did not become available" in message and "broken/1" in message and "no version in" in message
    assert served(server.target) == 1
    assert "NOT_FOUND" in failure(served, server.target, "other")


def test_only_a_list_of_models_can_be_reloaded(save_linear, write, start):
    server = start(model_config_file=write(model("dlrm", save_linear(1))))
    with grpc.insecure_channel(server.target) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        code, details = refused(stub.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest())
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert details.startswith("ServerModelConfig type not supported by HandleReloadConfigRequest.")


def test_the_configuration_file_is_polled_and_a_bad_one_changes_nothing(save_linear, write, start, caplog):
    one, two = save_linear(1, model="one"), save_linear(2, model="two")
    file = write(model("one", one))
    server = start(model_config_file=file, model_config_file_poll_wait_seconds=0.05)
    with open(file, "w") as f:
        f.write("model_config_list { nonsense")
    eventually(lambda: "not reloaded, the models stay as they are" in caplog.text)
    assert served(server.target, "one") == 1
    write(model("one", one), model("two", two))

    eventually(lambda: not failure(served, server.target, "two"))
    assert served(server.target, "two") == 2


def test_a_version_served_from_a_new_place_is_replaced_without_a_gap(save_linear, write, start, tmp_path):
    base, moved = save_linear(1, bias=10), save_linear(1, bias=20, model="moved")
    server = start(model_config_file=write(model("dlrm", base)))
    assert served(server.target) == 10
    reload(server, write(model("dlrm", moved)))
    assert served(server.target) == 20


def test_a_base_path_that_vanishes_keeps_serving_and_an_empty_one_unloads(save_linear, write, start):
    base = save_linear(1)
    server = start(model_config_file=write(model("dlrm", base)))
    os.rename(base, base + ".away")
    server._manager.poll()
    assert served(server.target) == 1
    os.rename(base + ".away", base)
    shutil.rmtree(os.path.join(base, "1"))

    eventually(lambda: "NOT_FOUND" in failure(served, server.target))
