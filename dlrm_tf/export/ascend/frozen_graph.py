"""The scorer as a frozen GraphDef, its table streamed into the file.

TensorFlow's own freezing copies the table many times: 2 GB took more than 22 GB of memory. Here a small stand-in is frozen, and
the node that holds it is replaced in the file by one with the rows of the weights file.
"""

import numpy as np

from dlrm_tf.checkpoints.ckpt_writer import varint
from dlrm_tf.files import StrPath, atomic_file
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.bags import place_weights, sum_places
from dlrm_tf.model.embedding import row_numbers
from dlrm_tf.model.inputs import input_specs
from dlrm_tf.model.subset import STAND_IN_ROWS, model_around
from dlrm_tf.weights.layout import table_chunks
from dlrm_tf.weights.reader import WeightsReader

tf = tensorflow()

# The field numbers of the messages that lead to a constant's bytes (tensorflow/core/framework: graph, node_def, attr_value,
# tensor .proto).
_GRAPH_NODE, _NODE_ATTR, _ENTRY_VALUE, _VALUE_TENSOR, _TENSOR_CONTENT = 1, 5, 2, 8, 4


def write_frozen_graph(weights: StrPath, path: StrPath) -> tuple[tuple[str, ...], str]:
    """Writes the inputs of `DLRMConfig.inputs` -> `probability` float32 `[B, 1]`.

    Args:
      weights: a `.weights.h5` file.
      path: the GraphDef (protobuf) to write.

    Returns:
      `(names of the inputs in their order, name of the output tensor)`.
    """
    with WeightsReader(weights) as reader, atomic_file(path) as temporary:
        graph, inputs, output = _freeze_with_stand_in(reader)
        (table,) = [n for n in graph.node if n.op == "Const" and _first_dimension(n.attr["value"].tensor) == STAND_IN_ROWS]
        graph.node.remove(table)
        config = reader.config
        with open(temporary, "wb") as f:
            f.write(_up_to_the_content(table, (config.table_rows, config.embedding_dim)))
            for start, stop in table_chunks(config):
                f.write(np.ascontiguousarray(reader.table(start, stop), "<f4").tobytes())
            # A message may be written in pieces: the parts of a repeated field add up.
            f.write(graph.SerializeToString(deterministic=True))
    return inputs, output


def _freeze_with_stand_in(reader: WeightsReader) -> tuple:
    """`(GraphDef, input names, output tensor)`; the layers are the file's, the table is zeros."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    config = reader.config
    table = tf.Variable(tf.zeros([STAND_IN_ROWS, config.embedding_dim]), trainable=False)

    def embed(categorical, weights=None):
        vectors = tf.gather(table, row_numbers(config, categorical))
        if not config.has_bags:
            return vectors
        return sum_places(config, vectors * place_weights(config, categorical, weights)[:, :, tf.newaxis])

    model, specs = model_around(embed, config, reader.dense), input_specs(config)

    @tf.function(input_signature=list(specs.values()))
    def score(*inputs):
        return tf.sigmoid(model(dict(zip(specs, inputs)), training=False))

    frozen = convert_variables_to_constants_v2(score.get_concrete_function())
    graph = frozen.graph.as_graph_def()
    _drop_default_attributes(graph)
    return graph, tuple(tensor.name.split(":")[0] for tensor in frozen.inputs), frozen.outputs[0].name


def _drop_default_attributes(graph) -> None:
    """A newer TensorFlow writes attributes that older readers (atc, TF 1.15, TF 2.6) do not know; defaults can be left out."""
    from tensorflow.python.framework import op_def_registry

    graph.ClearField("library")
    for node in graph.node:
        for attribute in op_def_registry.get(node.op).attr:
            name = attribute.name
            if attribute.HasField("default_value") and name in node.attr and node.attr[name] == attribute.default_value:
                del node.attr[name]


def _first_dimension(tensor) -> int:
    return tensor.tensor_shape.dim[0].size if tensor.tensor_shape.dim else 0


def _up_to_the_content(node, shape: tuple) -> bytes:
    """A GraphDef whose one node is the constant `node`, with another shape, up to where its bytes have to follow."""
    nbytes = 4 * shape[0] * shape[1]
    del node.attr["value"]
    tensor = tf.make_tensor_proto(np.zeros((0, shape[1]), np.float32))
    tensor.tensor_shape.dim[0].size = shape[0]
    head = tensor.SerializeToString() + _length_delimited(_TENSOR_CONTENT, b"", nbytes)
    head = _length_delimited(_VALUE_TENSOR, head, nbytes)
    # The entry of a map: field 1 is the key.
    head = _length_delimited(1, b"value", 0) + _length_delimited(_ENTRY_VALUE, head, nbytes)
    head = node.SerializeToString() + _length_delimited(_NODE_ATTR, head, nbytes)
    return _length_delimited(_GRAPH_NODE, head, nbytes)


def _length_delimited(field: int, head: bytes, size: int) -> bytes:
    """A field of bytes: `head`, and `size` bytes that come after it."""
    return varint(field << 3 | 2) + varint(len(head) + size) + head
