"""Exports compute what the network computes, and are refused where they do not."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from archipel.core.errors import RunError
from archipel.core.export import check_export, export_network


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Branches(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else x


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    net = Conv().train()
    net(torch.randn(16, 1, 8, 8))
    folder = tmp_path_factory.mktemp("model")
    example = torch.randn(3, 1, 8, 8)
    files = export_network(net, example, folder, {"width": 4}, {"metrics": {"accuracy": 0.5}})
    return net, folder, example, files


def test_all_forms_are_written_with_a_free_batch_size(exported):
    net, folder, _, files = exported
    assert set(files) == {p.name for p in folder.iterdir()}
    program = torch.export.load(folder / "program.pt2").module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(program(x), net(x))
    about = json.loads((folder / "about.json").read_text())
    assert about["input"] == {"shape": ["batch", 1, 8, 8], "dtype": "float32"}
    assert about["metrics"] == {"accuracy": 0.5}


def test_the_weights_are_there_by_name(exported):
    net, folder, *_ = exported
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == net.state_dict().keys()
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())


def test_a_form_that_computes_something_else_is_found_out(exported):
    net, folder, example, _ = exported
    with torch.no_grad():
        right = net(example)
    check_export(folder, example, right)
    with pytest.raises(RunError, match=r"program\.pt2 computes something else"):
        check_export(folder, example, right + 0.01)


def test_a_network_that_cannot_be_captured_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(RunError, match="cannot capture"):
        export_network(Branches(), torch.randn(2, 3), tmp_path / "model", {}, {})
    assert not (tmp_path / "model").exists()
