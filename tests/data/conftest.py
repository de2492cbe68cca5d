"""Tests of this folder never touch the network or the user's cache."""

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("ARCHIPEL_OFFLINE", "1")
    monkeypatch.setenv("ARCHIPEL_CACHE", str(tmp_path_factory.getbasetemp() / "empty-cache"))
