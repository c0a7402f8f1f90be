"""The device: opened first and once, options before, optimizer wrapped once, rows dealt out, ranks equal to one process."""

import json
import types

import numpy as np
import pytest
import small_run

import dlrm_tf
from dlrm_tf.ascend import device as ascend
from dlrm_tf.errors import UsageError
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.optimizers import make_optimizer

tf = tensorflow()
CRITEO = types.SimpleNamespace(config=dlrm_tf.DLRMConfig.preset("criteo_kaggle"), embedding=types.SimpleNamespace())


def run(processes, code, **variables):
    """Runs code in a process with the stand-in; returns what it answers."""
    code = "import os\nfrom dlrm_tf.ascend.device import open_device\nfrom small_run import *\n" + code
    exit_code, out, err = processes.run("-c", code, **variables)
    assert exit_code == 0, err
    return json.loads(out.splitlines()[-1]) if out else None


@pytest.mark.slow
def test_one_device_keeps_float32_and_is_opened_first(processes):
    code = "device = open_device(); train('sgd', 0, device); answer([device.rank, device.world_size, device.is_chief])"
    assert run(processes, code, ASCEND_DEVICE_ID="3") == [0, 1, True]
    assert processes.journal() == [
        {"event": "open", "device": 3, "options": {"precision_mode": "must_keep_origin_dtype"}, "idle": True},
        {"event": "as_default"},
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, saturates, scaled, scale, options",
    [
        # precision_mode_v2 replaces precision_mode: the plugin refuses both.
        (
            "options={'precision_mode_v2': 'mixed_float16', 'hcom_parallel': True}",
            "",
            "LossScaleOptimizer",
            2**15,
            {"precision_mode_v2": "mixed_float16", "hcom_parallel": True},
        ),
        ("loss_scale=1024", "1", "NpuLossScaleOptimizer", 1024, {"precision_mode": "allow_mix_precision"}),
    ],
)
def test_mixed_precision_scales_the_loss(processes, arguments, saturates, scaled, scale, options):
    code = f"""
device = open_device(precision='mixed', {arguments})
model = train('adagrad', 0, device)
answer([type(model.optimizer).__name__, float(model.optimizer.loss_scale), model.embedding.table.numpy().tolist()])
"""
    name, came, table = run(processes, code, FAKE_NPU_SATURATES=saturates)
    assert (name, came) == (scaled, scale)
    # A power of two is taken out again without a trace.
    np.testing.assert_allclose(table, small_run.train("adagrad", 0).embedding.table, rtol=0, atol=1e-6)
    assert processes.journal()[0]["options"] == options


@pytest.mark.slow
def test_errors_of_open_device(processes):
    code = """
from dlrm_tf.errors import AscendError
messages = []
def attempt(**arguments):
    try:
        open_device(**arguments)
    except AscendError as e:
        messages.append(str(e))
attempt(options={'no_such_option': 1})
os.environ['RANK_SIZE'] = '2'
attempt()
del os.environ['RANK_SIZE']
open_device()
os.environ['ASCEND_DEVICE_ID'] = '1'
attempt()
dlrm_tf.DLRM(CONFIG)
os.environ['ASCEND_DEVICE_ID'] = '0'
attempt()
answer(messages)
"""
    option, cluster, second, late = run(processes, code)
    assert option == "npu_device.global_options().no_such_option = 1: no_such_option is not an option"
    assert cluster == "RANK_SIZE=2 is set, but not RANK_TABLE_FILE, RANK_ID"
    assert second == "device 1 does not open: device 1: device 0 is open already"
    assert late.startswith("TensorFlow has already run an operation in this process: open the device before")
    assert [entry["event"] for entry in processes.journal()] == ["open", "as_default"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"precision": "half"}, "precision must be one of float32, mixed. Received 'half'"),
        ({"loss_scale": 8.0}, "loss_scale goes with precision 'mixed'"),
        ({"precision": "mixed", "loss_scale": -1}, "loss_scale must be 'dynamic' or a positive number. Received -1"),
        ({"options": {"precision_mode": "a", "precision_mode_v2": "b"}}, "exclude each other"),
    ],
)
def test_wrong_arguments_before_the_plugin_is_looked_for(arguments, message):
    with pytest.raises(UsageError, match=message):
        ascend.open_device(**arguments)


@pytest.mark.cluster
def test_two_ranks_train_as_one_process(processes):
    """Each begins with other weights; the chief's are broadcast. Every optimizer, behind a loss scale, on batches cut in two."""
    code = """
from dlrm_tf.ascend.device import open_device
from small_run import *
device = open_device(precision='mixed')
for name in RATES:
    model = train(name, device.rank, device)
    save(f'{name}{device.rank}.npz', model)
before = model.embedding.table.numpy()
features, label = rows(64)
features['dense'][1::2] = np.inf  # rank 1's rows
model.fit(device.share(tensorflow().data.Dataset.from_tensors((features, label))), verbose=0)
agreed = device.agree([device.rank + 1.0, 0.25])
answer([np.array_equal(before, model.embedding.table), float(model.optimizer.loss_scale), agreed])
"""
    for exit_code, out, err in processes.run_ranks(2, "-c", code):
        assert exit_code == 0, err
        # An overflow in one process makes all skip the step and halve the scale; the chief's numbers are everyone's.
        assert json.loads(out.splitlines()[-1]) == [True, 2**14, [1.0, 0.25]]
    for name in small_run.RATES:
        wanted = small_run.train(name, 0).trainable_variables
        with np.load(processes.folder / f"{name}0.npz") as zero, np.load(processes.folder / f"{name}1.npz") as one:
            for key, variable in zip(zero.files, wanted):
                np.testing.assert_array_equal(zero[key], one[key])
                np.testing.assert_allclose(zero[key], variable, rtol=0, atol=1e-6)
    events = [entry["event"] for entry in processes.journal("journal1")]
    assert events.count("wrap") == 3 and events[:2] == ["open", "as_default"]


@pytest.mark.cluster
def test_two_ranks_told_by_a_chief(processes):
    """The CM_* way: the plugin deals out the ranks. `shard` and `share` give a rank the same rows."""
    code = """
from dlrm_tf.ascend.device import open_device
from small_run import *
device = open_device()
data = tensorflow().data.Dataset.from_tensor_slices(rows(40))
labels = [[label.numpy().ravel().tolist() for _, label in batches]
          for batches in (device.shard(data, 16), device.share(data.batch(16, drop_remainder=True)))]
answer([device.rank, device.world_size, labels])
"""
    chief = {"CM_CHIEF_IP": "127.0.0.1", "CM_CHIEF_PORT": "6000", "CM_CHIEF_DEVICE": "0", "CM_WORKER_SIZE": "2"}
    started = [processes.start(["-c", code], ASCEND_DEVICE_ID=str(i), CM_WORKER_IP="127.0.0.1", **chief) for i in (0, 1)]
    label = small_run.rows(40)[1].ravel()
    for rank, (out, err) in enumerate([process.communicate(timeout=600) for process in started]):
        assert out, err
        came, size, (sharded, shared) = json.loads(out.splitlines()[-1])
        assert (came, size) == (rank, 2)
        assert sharded == shared == [label[i + rank : i + 16 : 2].tolist() for i in (0, 16)]


def test_uneven_and_dynamic_batches_are_refused():
    device = ascend.AscendDevice(None, 8, 0, None)
    with pytest.raises(UsageError, match="batch size: wanted a multiple of the 8 devices. Received 100"):
        device.shard(None, 100)
    data = tf.data.Dataset.range(64)
    with pytest.raises(UsageError, match="wanted a static batch size"):
        device.share(data.batch(16))
    with pytest.raises(UsageError, match="wanted a multiple of the 8 devices. Received 20"):
        device.share(data.batch(20, drop_remainder=True))


def test_dense_gradient_of_a_large_table_is_told(fake_plugin):
    import npu_device

    with pytest.warns(RuntimeWarning, match=r"gradient, 2\.16 GB, .*about 3\.78 GB in and out of each of 8 devices"):
        ascend.AscendDevice(npu_device, 8, 0, None).distribute(make_optimizer("sgd"), CRITEO)


@pytest.mark.parametrize("optimizer", [lambda: make_optimizer("lazy_adam"), lambda: make_optimizer("lazy_adam", dense="sgd")])
def test_lazy_adam_is_refused_on_several_devices(fake_plugin, optimizer):
    import npu_device

    with pytest.raises(UsageError, match="LazyAdam does not work on 2 Ascend devices"):
        ascend.AscendDevice(npu_device, 2, 0, None).distribute(optimizer(), CRITEO)
    ascend.AscendDevice(npu_device, 1, 0, None).distribute(optimizer(), CRITEO)


def test_loop_size_follows_steps_per_execution():
    sizes = []
    device = ascend.AscendDevice(types.SimpleNamespace(set_npu_loop_size=sizes.append), 1, 0, None)
    model = dlrm_tf.DLRM(dlrm_tf.DLRMConfig.preset("tiny"), seed=0)
    model.compile(make_optimizer("sgd", 0.1), steps_per_execution=4)
    data = tf.data.Dataset.from_tensor_slices(small_run.rows(80)).batch(8, drop_remainder=True).repeat()
    model.fit(data, steps_per_epoch=10, epochs=2, callbacks=[device.loop_callback(4)], verbose=0)
    assert sizes == [4, 4, 2, 4, 4, 2, 1]
