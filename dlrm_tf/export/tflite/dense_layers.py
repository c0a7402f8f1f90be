"""The precision of the dense layers inside a TFLite graph: float32, float16, or int8 with activations quantized on the fly."""

from typing import Optional

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from dlrm_tf.config import DLRMConfig
from dlrm_tf.export.tflite import flatbuffer
from dlrm_tf.export.tflite.calibration import INTERACTION_LAYER
from dlrm_tf.export.tflite.quantize import quantize_kernel

# What --mlp offers. "mixed" keeps the layer that reads the interactions in float16: its inputs differ most in magnitude, and
# one dynamic scale for them all costs most of the accuracy that int8 layers lose.
MLP_CHOICES = ("float32", "float16", "dynamic", "mixed")
# A kernel below this many elements stays float32: quantizing its input costs more than its product.
_SMALL = 1024
# The first TFLite with int8 kernels of a scale per output beside float inputs: version 12 of FULLY_CONNECTED.
_INT8_RUNTIME = b"2.17.0"


def layer_precision(config: DLRMConfig, choice: str) -> dict:
    """The precision of every dense layer.

    Args:
      config: the architecture.
      choice: one of `MLP_CHOICES`.

    Returns:
      `(mlp, layer)` -> `"float32"`, `"float16"` or `"int8"`.
    """
    precision = {}
    for mlp, i, fan_in, fan_out in config.dense_shapes():
        kind = {"dynamic": "int8", "mixed": "int8"}.get(choice, choice)
        if choice == "mixed" and (mlp, i) == INTERACTION_LAYER:
            kind = "float16"
        if kind == "int8" and fan_in * fan_out < _SMALL:
            kind = "float32"
        precision[mlp, i] = kind
    return precision


def quantize_dense_layers(
    model: schema.ModelT, dense_layers: dict, precision: dict, factors: Optional[np.ndarray] = None
) -> None:
    """Rewrites the float kernels of a converted graph in place.

    Done here and not by the converter because its optimizations take the whole graph: one precision for every layer, and
    the constants that decode the table are rounded too.

    Args:
      model: a graph as `graph.convert` gives it.
      dense_layers: `(mlp, layer)` -> `(kernel [in, out], bias [out] if there is one)`, float32: how a layer is found in the
        graph.
      precision: `(mlp, layer)` -> `"float32"`, `"float16"` or `"int8"`.
      factors: float32 `[in]` that the input of `INTERACTION_LAYER` is multiplied by, or None. Not part of the converted graph
        because the converter would fold them into the kernel.
    """
    graph = model.subgraphs[0]
    known = {key: np.ascontiguousarray(kernel.T).tobytes() for key, (kernel, *_) in dense_layers.items()}
    operators, replaced = [], set()
    for operator in graph.operators:
        if _builtin(model, operator) == schema.BuiltinOperator.FULLY_CONNECTED:
            number = operator.inputs[1]
            data = bytes(model.buffers[graph.tensors[number].buffer].data)
            key = next(k for k, kernel in known.items() if kernel == data)
            del known[key]
            if key == INTERACTION_LAYER and factors is not None:
                operators.append(_multiply_input(model, graph, operator, factors))
            if precision[key] != "float32":
                replaced.add(number)
                rewrite = _to_int8 if precision[key] == "int8" else _to_float16
                operators.extend(rewrite(model, graph, operator, dense_layers[key][0]))
        operators.append(operator)
    if known:
        raise AssertionError(f"layers not found in the converted graph: {sorted(known)}")
    graph.operators = operators
    if "int8" in precision.values():
        _require_runtime(model, _INT8_RUNTIME)
    for number in replaced:
        model.buffers[graph.tensors[number].buffer].data = None


def _require_runtime(model, version: bytes) -> None:
    """Replaces the converter's note of the oldest runtime that has all operators: it knew the float graph only."""
    for entry in model.metadata:
        if entry.name == b"min_runtime_version":
            model.buffers[entry.buffer].data = version.ljust(16, b"\0")


def _builtin(model, operator) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def _operator_code(model, builtin: int, version: int) -> int:
    """Number of an operator code, appended when the model has none such."""
    for i, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == builtin and code.version == version:
            return i
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _add_tensor(model, graph, name: bytes, shape, kind: int, data) -> int:
    """Appends a tensor, constant when it has data; returns its number."""
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = name, shape, kind
    tensor.quantization = schema.QuantizationParametersT()
    # Buffer 0 is the empty one.
    tensor.buffer = 0 if data is None else flatbuffer.add_buffer(model, data)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _multiply_input(model, graph, operator, factors):
    """Returns a MUL by constant factors that now stands before the operator."""
    before = graph.tensors[operator.inputs[0]]
    constant = _add_tensor(model, graph, before.name + b"_factors", [len(factors)], schema.TensorType.FLOAT32, factors.tobytes())
    product = _add_tensor(model, graph, before.name + b"_equalized", before.shape, schema.TensorType.FLOAT32, None)
    graph.tensors[product].shapeSignature = before.shapeSignature
    multiply = schema.OperatorT()
    multiply.opcodeIndex = _operator_code(model, schema.BuiltinOperator.MUL, 1)
    multiply.inputs = np.array([operator.inputs[0], constant], np.int32)
    multiply.outputs = np.array([product], np.int32)
    multiply.builtinOptionsType, multiply.builtinOptions = schema.BuiltinOptions.MulOptions, schema.MulOptionsT()
    operator.inputs[0] = product
    return multiply


def _to_int8(model, graph, operator, kernel) -> list:
    """Points the operator at int8 weights; it quantizes its input itself, every row of the batch with its own scale."""
    integers, scales = quantize_kernel(kernel)
    float_tensor = graph.tensors[operator.inputs[1]]
    number = _add_tensor(
        model, graph, float_tensor.name + b"_int8", float_tensor.shape, schema.TensorType.INT8, integers.tobytes()
    )
    quantization = graph.tensors[number].quantization
    quantization.scale, quantization.zeroPoint = scales, np.zeros(len(scales), np.int64)
    quantization.quantizedDimension = 0
    operator.inputs[1] = number
    operator.builtinOptions.asymmetricQuantizeInputs = True
    # Version 12: int8 weights with a scale per output beside a float input.
    operator.opcodeIndex = _operator_code(model, schema.BuiltinOperator.FULLY_CONNECTED, 12)
    return []


def _to_float16(model, graph, operator, kernel) -> list:
    """Stores the kernel as float16; returns the DEQUANTIZE before it, which the runtime executes once, on load."""
    float_tensor = graph.tensors[operator.inputs[1]]
    name, shape = float_tensor.name, float_tensor.shape
    data = np.ascontiguousarray(kernel.T).astype(np.float16).tobytes()
    stored = _add_tensor(model, graph, name + b"_float16", shape, schema.TensorType.FLOAT16, data)
    unpacked = _add_tensor(model, graph, name + b"_unpacked", shape, schema.TensorType.FLOAT32, None)
    dequantize = schema.OperatorT()
    dequantize.opcodeIndex = _operator_code(model, schema.BuiltinOperator.DEQUANTIZE, 3)
    dequantize.inputs, dequantize.outputs = np.array([stored], np.int32), np.array([unpacked], np.int32)
    operator.inputs[1] = unpacked
    return [dequantize]
