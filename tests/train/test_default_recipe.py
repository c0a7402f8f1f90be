"""The default recipe, without an option beside it, trains under every strategy (Ascend's: tests/ascend)."""

import json
import math
import os

import pytest
from test_strategies import MULTI_WORKER, fit_in_a_process

import dlrm_tf
from dlrm_tf.train import recipe
from dlrm_tf.train.options import FitOptions
from dlrm_tf.train.placements import PLACEMENTS
from dlrm_tf.train.placements.base import Placement
from dlrm_tf.train.placements.tpu import TPUPlacement
from dlrm_tf.train.resolve import resolve

# The options of `FitOptions` that are no recipe's. Two epochs would add time and nothing else.
OPTIONS = {"optimizer": None, "batch_size": None, "seed": 1, "epochs": 1, "validation_share": 0.1, "quiet": True}
MIRRORED = """
from dlrm_tf.keras2 import tensorflow
tf = tensorflow()
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * cluster)
print(json.dumps(fit(*folders, options=options).model.distribute_strategy.num_replicas_in_sync))
"""
PARAMETER_SERVER = """
with local_cluster(*folders, options=options, workers=cluster, ps=2):
    print(json.dumps(len(fit(*folders, options=options).model.embedding.table.variables)))
"""


@pytest.fixture(params=["few", "many"])
def name(request, tmp_path):
    """The default recipe as these 2,572 rows have it, and as more rows would, which it does not call few."""
    if request.param == "few":
        return "default"
    with open(os.path.join(os.path.dirname(recipe.__file__), "recipes", "default.json"), encoding="utf-8") as file:
        fields = json.load(file)
    del fields["few_rows"]
    (tmp_path / "many.json").write_text(json.dumps(fields))
    return str(tmp_path / "many.json")


@pytest.mark.parametrize("strategy", PLACEMENTS)
@pytest.mark.parametrize("weights", [None, "x.weights.h5"])
def test_no_strategy_refuses_it(name, strategy, weights, prepared, monkeypatch):
    plan = resolve(FitOptions(recipe=name, strategy=strategy, weights=weights), prepared)
    monkeypatch.setattr(PLACEMENTS[strategy], "make_strategy", Placement.make_strategy)  # all but the devices
    assert PLACEMENTS[strategy](plan.options, 1).options is plan.options


def assert_trained(history):
    assert [entry["step"] for entry in history] == [math.ceil(2315 / 64)] or [entry["step"] for entry in history] == [2315 // 64]
    assert history[0]["validation"]["rows"] == 257 and math.isfinite(history[0]["validation"]["logloss"])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["default", "tpu"])
def test_in_this_process(name, strategy, prepared, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(TPUPlacement, "make_strategy", Placement.make_strategy)
    options = FitOptions(**{**OPTIONS, "recipe": name, "strategy": strategy, "config": small_config})
    assert_trained(dlrm_tf.fit(prepared, tmp_path / "run", options=options).history)


@pytest.mark.cluster
@pytest.mark.parametrize(
    "strategy, program", [("mirrored", MIRRORED), ("multi_worker", MULTI_WORKER), ("parameter_server", PARAMETER_SERVER)]
)
def test_in_processes(name, strategy, program, prepared, small_config, tmp_path):
    options = {**OPTIONS, "recipe": name, "strategy": strategy, "config": small_config}
    assert fit_in_a_process(program, prepared, tmp_path, 2, **options) == 2
    assert_trained(json.loads((tmp_path / "run" / "history.json").read_text()))
