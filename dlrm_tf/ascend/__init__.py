"""Training on Huawei Ascend through the npu plugin."""
