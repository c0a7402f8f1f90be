"""Training on Huawei Ascend through the npu plugin: `npu_device` for TF 2, `npu_bridge` for sessions in TF 1's style.

No `tf.distribute` strategy: one process per device, gradients all-reduced by a wrapped optimizer, rows shared out by rank.
"""
