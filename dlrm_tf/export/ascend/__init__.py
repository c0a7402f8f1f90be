"""A frozen graph for Huawei's `atc`, with a script that checks the compiled model."""
