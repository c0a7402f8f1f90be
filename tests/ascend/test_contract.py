"""The stand-in has exactly the signatures of the plugin's table."""

import importlib
import inspect
import pathlib
import re

import pytest

TABLE = (pathlib.Path(__file__).parent / "contract.txt").read_text().splitlines()
CALL = re.compile(r"([\w.]+)\(([^()]*)\)")


def functions() -> dict:
    """Dotted name -> parameters as text, of every function of the table."""
    found = {}
    for line in TABLE:
        line, _, returned = line.split("#")[0].partition("->")
        module = re.match(r"([\w.]+): ", line)
        for name, parameters in CALL.findall(line):
            found[f"{module.group(1)}.{name}" if module else name] = parameters
        if returned.strip().startswith("handle:"):
            for name, parameters in CALL.findall(returned):
                found[f"handle.{name}"] = parameters
    return found


def test_the_table_is_read_whole():
    assert len(TABLE) == 11
    assert len(functions()) == 19


@pytest.mark.parametrize("name", [name for name in functions() if not name.startswith("handle.")])
def test_signature(fake_plugin, name):
    module, _, attribute = name.rpartition(".")
    function = getattr(importlib.import_module(module), attribute)
    signature = inspect.signature(function.__init__ if inspect.isclass(function) else function)
    parameters = [str(p) for p in signature.parameters.values() if p.name != "self"]
    assert ", ".join(parameters) == functions()[name]


def test_the_handle(fake_plugin):
    from npu_device.device import _Handle

    handle = _Handle(0, 1, 0)
    for name, parameters in functions().items():
        if name.startswith("handle."):
            assert str(inspect.signature(getattr(handle, name[7:]))) == f"({parameters})"
    assert (handle.workers_num, handle.worker_id) == (1, 0)
