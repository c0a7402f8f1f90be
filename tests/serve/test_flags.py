"""Every flag of the C++ server is known: its list, our parser and the table of serving/README.md agree."""

import argparse
import dataclasses
import logging
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from serving_models import LinearScorer, edited, failure, save_first, served

import dlrm_tf
from dlrm_tf.cli import serve
from dlrm_tf.errors import ServingError, UsageError
from dlrm_tf.score import Client
from dlrm_tf.serve import ModelServer
from dlrm_tf.serve.loading import BATCHING_FILE, session_config
from dlrm_tf.serve.options import ServerOptions
from dlrm_tf.serve.unused_flags import UNUSED_FLAGS

HERE = pathlib.Path(__file__).parent
MAIN_CC = [line for line in (HERE / "main_cc_flags.txt").read_text().splitlines() if not line.startswith("#")]
OURS = {"host", "rest_api_max_body_bytes", "max_repeated_values", "max_answer_bytes", "request_log_dir"}
OURS |= {"request_log_sampling_rate", "request_log_file_bytes", "request_log_file_seconds", "request_log_max_bytes"}


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_parser_knows_every_flag_and_says_which_do_nothing():
    fields = {field.name for field in dataclasses.fields(ServerOptions)}
    assert len(set(MAIN_CC)) == len(MAIN_CC) == 48
    assert fields.isdisjoint(UNUSED_FLAGS) and set(UNUSED_FLAGS) < set(MAIN_CC)
    assert set(vars(parsed())) == set(MAIN_CC) | OURS
    assert fields | set(UNUSED_FLAGS) | {"version"} == set(MAIN_CC) | OURS


def test_the_table_of_the_readme():
    text = (HERE.parents[1] / "serving" / "README.md").read_text()
    table = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", text.split("## Flags")[1].split("\n## ")[0], re.MULTILINE))
    assert list(table) == MAIN_CC
    assert {flag for flag, here in table.items() if here.startswith("no effect: ")} == set(UNUSED_FLAGS)


def test_the_forms_of_a_flag():
    assert parsed("--port=1", "--model_name", "a").port == 1
    for arguments, expected in ((["--enable_batching"], True), (["--enable_batching=false"], False), ([], False)):
        assert parsed(*arguments).enable_batching is expected
    assert parsed("--enable_batching", "--port=2").port == 2
    assert parsed("--batching_parameters_file=").batching_parameters_file == ""
    assert [parsed().enable_profiler, parsed("--enable_profiler").enable_profiler] == [None, True]
    with pytest.raises(SystemExit):
        parsed("--enable_batching=maybe")


def test_the_version(capsys):
    serve.run(parsed("--version"))
    expected = f"TensorFlow ModelServer: dlrm-tf {dlrm_tf.__version__}\nTensorFlow Library: {tf.__version__}\n"
    assert capsys.readouterr().out == expected


def test_a_flag_without_effect_is_one_warning(caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(UsageError, match="--model_base_path"):
        serve.run(parsed("--xla_cpu_compilation_enabled=false", "--mixed_precision=bfloat16"))
    assert [record.getMessage() for record in caplog.records] == [
        f"--{name} has no effect: {UNUSED_FLAGS[name][1]}" for name in ("xla_cpu_compilation_enabled", "mixed_precision")
    ]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, (1, 0)),
        ({"tensorflow_inter_op_parallelism": 0}, (0, 0)),
        ({"tensorflow_intra_op_parallelism": 3}, (1, 3)),
        ({"tensorflow_session_parallelism": 4}, (4, 4)),
        ({"tensorflow_session_parallelism": 4, "tensorflow_intra_op_parallelism": 3}, (1, 3)),
        ({"tensorflow_session_parallelism": 4, "tensorflow_inter_op_parallelism": 2}, (2, 0)),
        ({"tensorflow_session_config_file": "file"}, (None, None)),
    ],
)
def test_parallelism(tmp_path, options, expected):
    (tmp_path / "file").write_text("inter_op_parallelism_threads: 5 allow_soft_placement: true")
    if "tensorflow_session_config_file" in options:
        options = {"tensorflow_session_config_file": str(tmp_path / "file")}
    made = ServerOptions(**options)
    assert made.parallelism() == expected
    assert session_config(made).inter_op_parallelism_threads == (0 if expected[1] is not None else 5)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict.fromkeys((f"tensorflow_{x}_parallelism" for x in ("session", "inter_op", "intra_op")), 2),
            "You cannot configure all.",
        ),
        ({"enable_per_model_batching_parameters": True}, "needs --enable_batching"),
        ({"ssl_config_file": "x", "use_alts_credentials": True}, "exclude each other"),
        ({"num_load_threads": -1}, "--num_load_threads: wanted at least 0. Received -1"),
        ({"rest_api_num_threads": 0}, "--rest_api_num_threads: wanted at least 1. Received 0"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        ServerOptions(**options)


def test_numbers_of_threads():
    assert ServerOptions(rest_api_num_threads=3, grpc_max_threads=5).rest_threads() == 3
    assert ServerOptions(grpc_max_threads=5).rest_threads() == 5
    assert ServerOptions(num_tflite_pools=2).lite_pools() == 2
    config = session_config(ServerOptions(per_process_gpu_memory_fraction=0.5))
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a model with the tags `serve`, and of one with `serve` and `gpu`, both version 1 of a bias of 2 and 3."""
    folder = tmp_path_factory.mktemp("tagged")
    for name, bias, tags in (("plain", 2, ["serve"]), ("tagged", 3, ["serve", "gpu"])):
        module = LinearScorer(bias)
        save_first(folder / name, module, serving_default=module.predict)
        with edited(folder / name / "1") as meta_graph:
            meta_graph.meta_info_def.tags[:] = tags
    return folder


def test_saved_model_tags(models):
    base = str(models / "tagged")
    with ModelServer(model_name="dlrm", model_base_path=base, saved_model_tags="serve,gpu") as server:
        assert served(server.target) == 3
    with pytest.raises(ServingError, match=r"Could not find meta graph def matching supplied tags: \{ serve \}"):
        ModelServer(model_name="dlrm", model_base_path=base).start()


def test_a_version_says_how_it_is_batched(models, tmp_path):
    (models / "tagged" / "1" / BATCHING_FILE).write_text("max_batch_size { value: 2 }")
    common = tmp_path / "batching.config"
    common.write_text("max_batch_size { value: 1 } num_batch_threads { value: 3 }")
    options = {"enable_batching": True, "batching_parameters_file": str(common), "enable_per_model_batching_parameters": True}
    rows = np.zeros((3, 13)), np.zeros((3, 26), np.int32)
    plain = {"model_name": "dlrm", "model_base_path": str(models / "plain"), **options}
    with ModelServer(**plain) as server, Client(server.target) as client:
        assert len(client.score(*rows)) == 3  # no file: not batched
    one = {"model_name": "dlrm", "model_base_path": str(models / "tagged"), "saved_model_tags": "serve,gpu", **options}
    with ModelServer(**one) as server, Client(server.target) as client:
        assert len(client.score(*(array[:2] for array in rows))) == 2
        assert "Task size 3 is larger than maximum input batch size 2" in failure(client.score, *rows)
    (models / "tagged" / "1" / BATCHING_FILE).write_text("max_batch: 2")
    with pytest.raises(ServingError, match="Error parsing text-format tensorflow.serving.BatchingParameters"):
        ModelServer(**one).start()


def test_alts_lets_no_plain_text_in(models):
    server = ModelServer(model_name="dlrm", model_base_path=str(models / "plain"), use_alts_credentials=True)
    refused = failure(server.start)
    if refused:
        assert "a machine without ALTS" in refused
    else:  # on Google's cloud
        with server:
            assert "UNAVAILABLE" in failure(served, server.target, retries=0)
