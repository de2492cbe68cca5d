"""Shared by all tests: one thread, no downloads, small real data."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["ARCHIPEL_OFFLINE"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """No test writes into the user's cache or into the working tree."""
    monkeypatch.setenv("ARCHIPEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ARCHIPEL_CLAIMS", str(tmp_path / "claims"))
