"""Statistics of the dense layers' inputs, and what they correct: the bias and the outliers of int8 layers."""

import dataclasses
from typing import Optional

import numpy as np

from dlrm_tf.export.tflite.quantize import quantize_kernel
from dlrm_tf.keras2 import tensorflow
from dlrm_tf.model.subset import subset_model
from dlrm_tf.weights.reader import WeightsReader
from dlrm_tf.weights.subset import renumber, seen_ids

tf = tensorflow()

# The layer that reads the interactions: its inputs differ most in magnitude.
INTERACTION_LAYER = ("top_mlp", 0)
# The most rows that are used, and the least: statistics of fewer rows cost more accuracy than they gain.
CALIBRATION_ROWS, LEAST_ROWS = 20_000, 256
# A factor of equalization differs from the median one by at most this factor: an input that is nearly 0 on the measured rows must
# not exceed all others on rows where it is not.
_LARGEST_FACTOR = 32


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What the dense layers read on representative rows; labels play no part.

    Attributes:
      rows: number of rows.
      means: `(mlp, layer)` -> mean input float32 `[in]`.
      interaction_rms: root mean square input of `INTERACTION_LAYER`, float32 `[in]`.
    """

    rows: int
    means: dict
    interaction_rms: np.ndarray


def calibrate(weights: str, dense: np.ndarray, categorical: np.ndarray, key_weights: Optional[np.ndarray] = None) -> Calibration:
    """Runs the float model and collects statistics of what its dense layers read.

    Args:
      weights: a `.weights.h5` file.
      dense: float32 `[n, dense_dim]`, already log(max(x, 0) + 1); the first `CALIBRATION_ROWS` rows are used.
      categorical: int32 `[n, id_columns]`, ids of that file.
      key_weights: float32 `[n, id_columns]`, the input `weights` of a weighted model.
    """
    dense, categorical = dense[:CALIBRATION_ROWS], categorical[:CALIBRATION_ROWS]
    with WeightsReader(weights) as reader:
        kept = seen_ids(categorical, reader.config)
        model = subset_model(reader, kept)
    means: dict[tuple[str, int], np.ndarray] = {}
    rms: dict[tuple[str, int], np.ndarray] = {}

    def observe(mlp: str, layer: int, x):
        means[mlp, layer] = tf.reduce_mean(x, axis=0).numpy()
        rms[mlp, layer] = tf.sqrt(tf.reduce_mean(x**2, axis=0)).numpy()

    keys = [renumber(categorical, kept, model.config), *([] if key_weights is None else [key_weights[:CALIBRATION_ROWS]])]
    # Without dense features `dense` has no columns, and the head does not look at it.
    model.head(tf.constant(dense), model.embedding(*map(tf.constant, keys)), observe=observe)
    return Calibration(len(dense), means, rms[INTERACTION_LAYER])


def correct(dense_layers: dict, precision: dict, calibration: Calibration) -> tuple:
    """Prepares layers for int8.

    Two known corrections. Equalization (SmoothQuant, Xiao et al. 2023, section 4): the inputs of the interaction layer are
    divided by s and its kernel's rows multiplied, so that one dynamic scale does for all of them; s is proportional to
    sqrt(rms of the input / rms of the kernel's row), the paper's alpha = 0.5. Bias correction (Nagel et al. 2019, section
    4.2): the rounding of a kernel moves the layer's mean output, which is taken back by the bias.

    Args:
      dense_layers: `(mlp, layer)` -> `(kernel [in, out], bias [out] if there is one)`, float32.
      precision: `(mlp, layer)` -> `"float32"`, `"float16"` or `"int8"`.
      calibration: of the same weights.

    Returns:
      `(layers, 1 / s)`: corrected layers, and the factors float32 `[in]` of the interaction layer's input; None when that layer
      is not int8.
    """
    means, factors = dict(calibration.means), None
    layers = dict(dense_layers)
    if precision[INTERACTION_LAYER] == "int8":
        kernel, bias = layers[INTERACTION_LAYER]
        row_rms = np.sqrt((kernel**2).mean(axis=1))
        # An input or row of zeros says nothing about scales: it keeps 1.
        used = (calibration.interaction_rms > 0) & (row_rms > 0)
        s = np.ones(len(kernel), np.float32)
        if used.any():
            wanted = np.sqrt(calibration.interaction_rms[used] / row_rms[used])
            s[used] = np.clip(wanted / np.median(wanted), 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        layers[INTERACTION_LAYER] = np.ascontiguousarray(kernel * s[:, None]), bias
        factors = (1 / s).astype(np.float32)
        means[INTERACTION_LAYER] = means[INTERACTION_LAYER] * factors
    for key, (kernel, *bias) in layers.items():
        if precision[key] == "int8" and bias:
            integers, scales = quantize_kernel(kernel)
            rounding = kernel - (integers * scales[:, None]).T
            layers[key] = kernel, (bias[0] + means[key] @ rounding).astype(np.float32)
    return layers, factors
