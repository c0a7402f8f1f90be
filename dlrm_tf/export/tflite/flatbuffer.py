"""Writing TFLite files: constants streamed behind the graph, metadata, and a check of what the graph needs to run."""

import collections
import json
import struct
from collections.abc import Iterable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from dlrm_tf.errors import DLRMError
from dlrm_tf.lite.metadata import METADATA, data_field, mapped, metadata_buffer

# Offsets inside a flatbuffer are signed 32 bit in every reader.
MAX_BYTES = 2**31 - 1
# TFLite's kernels read constants in place and want them aligned so.
_ALIGNMENT = 16


def read(data: bytes) -> schema.ModelT:
    """The object tree of a model given as `data`, the bytes of a file."""
    # A bytearray, because the object tree's arrays are views of it and are edited.
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(data), 0))


def shorten_names(model: schema.ModelT) -> None:
    """Cuts Keras's name scopes from tensor names in `model`: they count the layers of this process, so exports would differ."""
    made: collections.Counter[bytes] = collections.Counter()
    for tensor in model.subgraphs[0].tensors:
        if b"/" in tensor.name:
            # The converter joins the names of operations that it fuses by semicolons.
            operation = tensor.name.split(b";")[0].rsplit(b"/", 1)[1]
            tensor.name = b"%s_%d" % (operation, made[operation])
            made[operation] += 1


def add_buffer(model: schema.ModelT, data: bytes) -> int:
    """Appends the constant `data` to a `model`; returns its number."""
    buffer = schema.BufferT()
    buffer.data = data
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def add_metadata(model: schema.ModelT, name: str, data: bytes) -> None:
    """Appends an entry to Model.metadata. The JSON, `METADATA`, must be last, so that it can be replaced in the written file.

    Args:
      model: the graph.
      name: the entry's name.
      data: its bytes.
    """
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, add_buffer(model, data)
    model.metadata = [*(model.metadata or []), entry]


def write(path: str, model: schema.ModelT, streams: dict) -> None:
    """Writes a model whose constants lie behind the graph, so that a large one is streamed and never held in memory.

    A flatbuffer's vectors may stand anywhere behind the field that refers to them. The graph is packed with one-byte
    constants, the real ones are appended (16-byte aligned) and the references are set to them: an ordinary TFLite file
    that any runtime maps.

    Args:
      path: the file to write.
      model: the graph; `model.buffers[i].data` is the constant, unless `i` is in `streams`.
      streams: buffer number -> `(bytes in all, iterable of bytes-like pieces)`.

    Raises:
      DLRMError: the file would be too large for a flatbuffer; nothing is written.
    """
    graph, constants = _pack(model, streams)
    total = _total(graph, constants)
    if total > MAX_BYTES:
        raise DLRMError(f"{path}: {total:,} bytes, but a TFLite file holds at most {MAX_BYTES:,}: keep fewer ids (--max-size)")
    root = schema.Model.GetRootAs(graph, 0)
    position, starts = len(graph), {}
    for i, (size, _) in constants.items():
        # The vector's 4-byte length stands directly before its aligned data.
        starts[i] = -(-(position + 4) // _ALIGNMENT) * _ALIGNMENT - 4
        field = data_field(root.Buffers(i))
        struct.pack_into("<I", graph, field, starts[i] - field)
        position = starts[i] + 4 + size
    with open(path, "wb") as file:
        file.write(graph)
        for i, (size, pieces) in constants.items():
            file.write(bytes(starts[i] - file.tell()) + struct.pack("<I", size))
            for piece in pieces:
                file.write(piece)
            if file.tell() != starts[i] + 4 + size:
                raise AssertionError(f"buffer {i}: announced {size} bytes. Received {file.tell() - starts[i] - 4}")


def packed_size(model: schema.ModelT, sizes: dict[int, int], extras: Iterable[bytes]) -> int:
    """At most how many bytes `write` would make of the model.

    Args:
      model: the graph; it is left as it was.
      sizes: buffer number -> bytes of a constant that is streamed.
      extras: constants (bytes) that are to be added.
    """
    held = [buffer.data for buffer in model.buffers]
    packed = _total(*_pack(model, {i: (size, ()) for i, size in sizes.items()}))
    for buffer, data in zip(model.buffers, held):
        buffer.data = data
    return packed + sum(len(data) + 2 * _ALIGNMENT for data in extras)


def _pack(model: schema.ModelT, streams: dict) -> tuple:
    """`(the graph with one-byte constants as bytearray, buffer number -> (size, pieces))`."""
    import flatbuffers

    constants = {}
    for i, buffer in enumerate(model.buffers):
        if i in streams:
            constants[i] = streams[i]
        elif buffer.data is not None and len(buffer.data):
            constants[i] = (len(buffer.data), [bytes(buffer.data)])
        if i in constants:
            buffer.data = b"\0"
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytearray(builder.Output()), constants


def _total(graph: bytearray, constants: dict) -> int:
    return len(graph) + sum(size + 2 * _ALIGNMENT for size, _ in constants.values())


def set_metadata(path: str, values: dict) -> None:
    """Replaces the JSON in a file that `write` made; it is the file's last vector.

    Args:
      path: the file.
      values: what the JSON holds.
    """
    with mapped(path) as model:
        position = data_field(metadata_buffer(model, METADATA))
        start = position + struct.unpack_from("<I", model._tab.Bytes, position)[0]
    text = json.dumps(values).encode()
    with open(path, "r+b") as file:
        file.truncate(start)
        file.seek(start)
        file.write(struct.pack("<I", len(text)) + text)


def check_operators(path: str, largest_constant: int = 1 << 22) -> None:
    """Refuses a graph that needs more than the plain runtime, or that would unpack the table into memory.

    Args:
      path: the file.
      largest_constant: elements up to which a constant may be dequantized (an MLP kernel is, on load).

    Raises:
      DLRMError: a custom or Flex operator, or a DEQUANTIZE or CAST of a table-sized constant; it is named.
    """
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    with mapped(path) as model:
        for g in range(model.SubgraphsLength()):
            graph = model.Subgraphs(g)
            for o in range(graph.OperatorsLength()):
                operator = graph.Operators(o)
                code = model.OperatorCodes(operator.OpcodeIndex())
                name = names.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "?")
                if name == "CUSTOM" or code.CustomCode():
                    custom = (code.CustomCode() or b"?").decode(errors="replace")
                    raise DLRMError(f"{path}: operator {o} is the custom operator {custom}, which a plain TFLite runtime lacks")
                if name not in ("DEQUANTIZE", "CAST"):
                    continue
                tensor = graph.Tensors(operator.Inputs(0))
                elements = 1
                for d in range(tensor.ShapeLength()):
                    elements *= tensor.Shape(d)
                if model.Buffers(tensor.Buffer()).DataLength() and elements > largest_constant:
                    raise DLRMError(f"{path}: operator {o} ({name}) unpacks a constant of {elements:,} elements into memory")


def resize_table(model: schema.ModelT, stand_in_rows: int, rows: int) -> int:
    """Gives the stand-in table in a converted graph its real number of rows.

    Args:
      model: the graph.
      stand_in_rows: rows of the stand-in.
      rows: rows of the real table.

    Returns:
      The number of the table's buffer.
    """
    found = [t for t in model.subgraphs[0].tensors if t.type == schema.TensorType.INT8 and list(t.shape)[:1] == [stand_in_rows]]
    if len(found) != 1:
        raise AssertionError(f"wanted one int8 table of {stand_in_rows} rows in the converted graph. Received {len(found)}")
    found[0].shape = np.array([rows, *found[0].shape[1:]], np.int32)
    return found[0].buffer
