"""A full disk."""

import collections
import shutil

import pytest


@pytest.fixture
def no_room(monkeypatch):
    """One byte is free on every disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: collections.namedtuple("usage", "total used free")(10, 9, 1))
