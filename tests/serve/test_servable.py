"""One loaded version: any SavedModel, its calls compiled a bounded number of times."""

import gc
import shutil
import threading
import weakref

import numpy as np
import pytest
import tensorflow as tf
from serving_models import edited

from dlrm_tf.errors import ServingError
from dlrm_tf.serve.servable import MAX_CALLS, Servable
from dlrm_tf.serving_api.errors import RequestError

v1 = tf.compat.v1


@pytest.fixture(params=[0, 1])
def load(request, tmp_path):
    """Function that loads what a test saved as `m`, with either executor."""
    return lambda: Servable(str(tmp_path / "m"), inter_op_threads=request.param)


def save_v1(path, function, dtype=tf.float32, shape=(None,)):
    """A TF1 SavedModel with one input `x`; `function` of it gives the outputs by name."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(dtype, shape)
        outputs = function(x)
        session.run(v1.global_variables_initializer())
        info = v1.saved_model.build_tensor_info
        signature = v1.saved_model.build_signature_def(
            {"x": info(x)},
            {name: info(tensor) for name, tensor in outputs.items()},
            "tensorflow/serving/predict",
        )
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()


def run(servable, *arrays):
    signature = servable.signatures["serving_default"]
    feeds = tuple(signature.inputs[name].name for name in sorted(signature.inputs))
    return servable.run(feeds, arrays, tuple(signature.outputs[name].name for name in sorted(signature.outputs)))


def test_tf1_control_flow_and_reference_variables(tmp_path, load):
    def build(x):
        _, doubled = tf.while_loop(lambda i, _: i < 5, lambda i, v: [i + 1, v * 2], [tf.constant(0), x])
        return {"y": doubled * v1.get_variable("w", initializer=3.0, use_resource=False)}

    v2 = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        save_v1(tmp_path / "m", build)
    finally:
        if v2:
            v1.enable_control_flow_v2()
    servable = load()
    assert run(servable, np.array([1.0, 2.0], np.float32))[0].tolist() == [96.0, 192.0]


def test_scalars_and_strings_are_arrays(tmp_path, load):
    save_v1(tmp_path / "m", lambda x: {"a": tf.strings.length(x), "b": tf.strings.join([x, "\0"])}, tf.string, ())
    length, text = run(load(), np.array(b"ab", object))
    assert length.shape == text.shape == () and int(length) == 2 and text.item() == b"ab\0" and text.dtype == object


def test_tables_are_initialized_from_assets(tmp_path, load):
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")

    class Lookup(tf.Module):
        def __init__(self):
            initializer = tf.lookup.TextFileInitializer(
                str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="x")])
        def find(self, x):
            return {"id": self.table.lookup(x)}

    module = Lookup()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"serving_default": module.find})
    words.unlink()
    assert run(load(), np.array([b"b", b"z"], object))[0].tolist() == [1, -1]


def test_many_choices_of_outputs_keep_few_compiled_calls(tmp_path):
    save_v1(tmp_path / "m", lambda x: {str(i): x + i for i in range(8)})
    servable = Servable(str(tmp_path / "m"))
    signature = servable.signatures["serving_default"]
    for choice in range(1, 256):
        wanted = [i for i in range(8) if choice >> i & 1]
        outputs = servable.run(
            (signature.inputs["x"].name,), [np.zeros(1, np.float32)], tuple(signature.outputs[str(i)].name for i in wanted)
        )
        assert [float(output[0]) for output in outputs] == wanted
    assert len(servable._calls) == MAX_CALLS


def test_calls_from_many_threads_at_once(tmp_path, load):
    save_v1(tmp_path / "m", lambda x: {"y": tf.cumsum(x)})
    servable, wrong = load(), []

    def call(value):
        for size in range(1, 50):
            (y,) = run(servable, np.full(size, value, np.float32))
            if y[-1] != value * size:
                wrong.append((value, size))

    threads = [threading.Thread(target=call, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_runtimes_error_keeps_its_code(tmp_path):
    save_v1(tmp_path / "m", lambda x: {"y": tf.reshape(x, [2])})
    with pytest.raises(RequestError, match="Input to reshape is a tensor with 3 values") as caught:
        run(Servable(str(tmp_path / "m")), np.zeros(3, np.float32))
    assert caught.value.code.name == "INVALID_ARGUMENT"


@pytest.mark.parametrize("wrong", [np.array([b"a"], object), np.zeros(1), np.zeros(1, np.int32), np.zeros(1, bool)])
def test_a_wrong_type_never_reaches_the_graph(tmp_path, load, wrong):
    """TensorFlow's single-threaded executor would end the process."""
    save_v1(tmp_path / "m", lambda x: {"y": tf.reduce_sum(x)})
    with pytest.raises(RequestError, match=r"Expects arg\[0\] to be float but \w+ is provided") as caught:
        run(load(), wrong)
    assert caught.value.code.name == "INVALID_ARGUMENT"


def test_close_lets_the_model_go(save_linear):
    servable = Servable(save_linear(1) + "/1")
    graph = weakref.ref(servable._session.graph)
    servable.close()
    gc.collect()
    assert graph() is None


def other_tags(path):
    with edited(path) as meta_graph:
        meta_graph.meta_info_def.tags[:] = ["train"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "saved_model.pb").write_bytes(b""),
        lambda path: (path / "saved_model.pb").write_bytes(b"\xff" * 100),
        lambda path: (path / "saved_model.pb").write_bytes((path / "saved_model.pb").read_bytes()[:-100]),
        lambda path: shutil.rmtree(path / "variables"),
        other_tags,
    ],
    ids=["empty", "garbage", "cut", "no variables", "tags"],
)
def test_damaged_models_say_which(save_linear, tmp_path, damage):
    save_linear(1)
    damage(tmp_path / "dlrm" / "1")
    with pytest.raises(ServingError, match="dlrm/1: (the SavedModel does not load|Could not find meta graph def matching)"):
        Servable(str(tmp_path / "dlrm" / "1"))
