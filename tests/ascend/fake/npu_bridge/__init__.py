"""The part of npu_bridge for TF 1 that our code uses."""
