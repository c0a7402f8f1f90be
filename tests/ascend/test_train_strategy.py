"""`train --strategy ascend`: two ranks give what one process gives, over a resume too; errors come before anything."""

import json
import os

import numpy as np
import pytest

import dlrm_tf
from dlrm_tf.ascend import plugin
from dlrm_tf.cli.main import main
from dlrm_tf.data.prepare import prepare
from dlrm_tf.data.synthetic import synth

BATCH = 256


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ascend_train")
    # A seventh is for the test: 6 whole batches stay.
    synth(folder / "rows.tsv", rows=7 * BATCH, seed=4, cardinalities=[30] * 26)
    return prepare(folder / "rows.tsv", folder / "data")


@pytest.fixture(scope="module")
def config(records, tmp_path_factory):
    config = dlrm_tf.DLRMConfig(records.sizes, embedding_dim=4, bottom_mlp=(8, 4), top_mlp=(8, 1))
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(config.to_json())
    return path


@pytest.fixture
def arguments(records, config):
    """The command line; every rank has an output folder of its own."""
    return [
        *("-m", "dlrm_tf", "train", "--data", str(records.folder), "-o", "run{rank}", "--config", str(config), "--quiet"),
        *(
            "--strategy",
            "ascend",
            "--recipe",
            "mindspore",
            "--optimizer",
            "adagrad",
            "--learning-rate",
            "0.05",
            "--batch-size",
            str(BATCH),
        ),
    ]


def assert_equals_one_process(records, config, tmp_path, weights, epochs):
    alone = dlrm_tf.fit(
        records,
        tmp_path / "alone",
        config=dlrm_tf.DLRMConfig.read(str(config)),
        recipe="mindspore",
        optimizer="adagrad",
        learning_rate=0.05,
        epochs=epochs,
        batch_size=BATCH,
        quiet=True,
    )
    for wanted, came in zip(alone.model.trainable_variables, dlrm_tf.load(weights).trainable_variables):
        np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-6)


@pytest.mark.cluster
def test_two_ranks_with_a_resume_give_what_one_process_gives(processes, arguments, records, config, tmp_path):
    for extra in (("--epochs", "1"), ("--epochs", "2", "--resume", "--steps-per-execution", "4")):
        for exit_code, _, err in processes.run_ranks(2, *arguments, *extra):
            assert exit_code == 0, err
    # Only rank 0 writes, so all that rank 1 knows after the resume was broadcast.
    assert os.path.exists(processes.folder / "run0") and not os.path.exists(processes.folder / "run1")
    assert_equals_one_process(records, config, tmp_path, processes.folder / "run0" / "model.weights.h5", 2)
    events = processes.journal("journal1")
    assert [event["idle"] for event in events if event["event"] == "open"] == [True, True]
    assert [event["size"] for event in events if event["event"] == "loop"] == [1] * 7 + [4, 2, 1]
    first, second = (event["names"] for event in events if event["event"] == "broadcast")
    assert len(first) == len(second) == 9 + 1 + 9 + 1  # weights, iterations, slots, step
    assert sum("accumulator" in name for name in second) == 9


@pytest.mark.slow
def test_one_device_alone(processes, arguments, records, config, tmp_path):
    exit_code, _, err = processes.run(*arguments)
    assert exit_code == 0, err
    assert_equals_one_process(records, config, tmp_path, processes.folder / "run{rank}" / "model.weights.h5", 1)


@pytest.mark.cluster
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_default_recipe(processes, arguments, records, ranks):
    """Without an option beside it; on two ranks LazyAdam would be refused."""
    given = arguments[: arguments.index("--recipe")]
    for exit_code, _, err in processes.run_ranks(ranks, *given, "--epochs", "1") if ranks > 1 else [processes.run(*given)]:
        assert exit_code == 0, err
    folder = processes.folder / ("run0" if ranks > 1 else "run{rank}")
    settings = json.loads((folder / "settings.json").read_text())
    assert (settings["optimizer"], settings["dropout"]) == ("adagrad", 0)
    assert np.isfinite(dlrm_tf.load(folder / "model.weights.h5").embedding.table.numpy()).all()


@pytest.mark.slow
def test_too_few_rows_for_a_batch(processes, arguments):
    exit_code, _, err = processes.run(*arguments, "--batch-size", "9000")
    assert exit_code == 1 and err.endswith("1536 training rows make no batch of 9000\n")
    assert not os.path.exists(processes.folder / "run{rank}")


@pytest.mark.parametrize(
    "variables, extra, exit_code, message",
    [
        ({"RANK_SIZE": "2"}, (), 1, "dlrm-tf: RANK_SIZE=2 is set, but not RANK_TABLE_FILE, RANK_ID\n"),
        ({"FAKE_NPU_BROKEN": "1"}, (), 1, "npu_device is installed but does not load (ImportError: libascendcl.so"),
        ({}, ("--loss-scale", "8"), 2, "loss_scale goes with precision 'mixed'"),
        ({}, ("--loss-scale", "big"), 2, "--loss-scale: wanted a number or dynamic. Received 'big'"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    fake_plugin, arguments, tmp_path, monkeypatch, capsys, variables, extra, exit_code, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plugin, "_version", {"npu_device": "2.6.5", "tensorflow": "2.6.5"}.get)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main([*arguments[2:], *extra]) == exit_code
    out, err = capsys.readouterr()
    assert message in err and len(err.splitlines()) == 1 and out == ""
    assert os.listdir(tmp_path) == []


def test_without_the_plugin(clean_environment, arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments[2:]) == 1
    assert capsys.readouterr().err.startswith(
        "dlrm-tf: npu_device, the Ascend plugin for TensorFlow 2, is not installed: its wheel"
    )
    assert os.listdir(tmp_path) == []
