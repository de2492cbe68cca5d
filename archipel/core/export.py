"""Handing a network over in forms that run without this library.

``model/`` holds ``architecture.json``, ``model.safetensors`` (the weights), ``program.pt2`` (a ``torch.export``
archive: plain PyTorch runs it), ``model.onnx`` (ONNX Runtime runs it), ``about.json`` (inputs, preprocessing, classes)
and ``README.md``. What is written is loaded again and compared with the network before the export counts as done.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archipel.core.decision import Arch
from archipel.core.errors import RunError
from archipel.core.storage import write_atomically, write_json

# Largest difference of outputs, relative to their size, between the network and its exported forms.
TOLERANCE = 1e-4

README = """# A trained network

`architecture.json` says what it is, `about.json` what goes in and comes out. It runs without the library that found it.

With PyTorch:

    import torch
    net = torch.export.load("program.pt2").module()
    logits = net(x)                     # x: {dtype} {shape}, batch first

With ONNX Runtime:

    import onnxruntime
    session = onnxruntime.InferenceSession("model.onnx")
    logits = session.run(None, {{"input": x.numpy()}})[0]

`model.safetensors` holds the weights by name.
"""


def export_network(
    net: nn.Module, example: Tensor, folder: Path | str, arch: Arch, about: dict[str, Any]
) -> dict[str, str]:
    """Write a network to ``folder`` and check what was written.

    Args:
        net: a plain module that maps ``example``.
        example: a batch of inputs with at least two rows; the batch size stays free in the exported forms.
        arch: for ``architecture.json``.
        about: JSON about data, metrics and costs; the input's shape and type are added.

    Returns:
        name -> file path of what was written.

    Raises:
        RunError: the network cannot be exported, a file cannot be written, or an exported form computes something
            else than the network.
    """
    folder = Path(folder)
    net = net.eval()
    shape, dtype = list(example.shape[1:]), str(example.dtype).removeprefix("torch.")
    about = {**about, "input": {"shape": ["batch", *shape], "dtype": dtype}}
    weights = {k: v.detach().contiguous().clone() for k, v in net.state_dict().items()}
    with _quiet():
        program, onnx_bytes = _programs(net, example)
    with torch.no_grad():
        expected = net(example)

    import safetensors.torch

    write_json(folder / "architecture.json", arch)
    write_json(folder / "about.json", about)
    write_atomically(folder / "model.safetensors", lambda f: f.write(safetensors.torch.save(weights)))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(folder / "program.pt2", lambda f: f.write(buffer.getvalue()))
    write_atomically(folder / "model.onnx", lambda f: f.write(onnx_bytes))
    readme = README.format(dtype=dtype, shape=about["input"]["shape"])
    write_atomically(folder / "README.md", lambda f: f.write(readme.encode()))
    check_export(folder, example, expected)
    names = ("architecture.json", "about.json", "model.safetensors", "program.pt2", "model.onnx", "README.md")
    return {name: str(folder / name) for name in names}


def _programs(net: nn.Module, example: Tensor) -> tuple[torch.export.ExportedProgram, bytes]:
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch},)
    try:
        program = torch.export.export(net, (example,), dynamic_shapes=shapes)
    except Exception as error:
        raise RunError(f"torch.export cannot capture this network: {error}") from error
    try:
        onnx_program = torch.onnx.export(
            program, (), input_names=["input"], output_names=["output"], dynamo=True, verbose=False
        )
        assert onnx_program is not None
        data = onnx_program.model_proto.SerializeToString()
    except Exception as error:
        raise RunError(f"ONNX cannot express this network: {error}") from error
    return program, data


def check_export(folder: Path, example: Tensor, expected: Tensor) -> None:
    """Run the exported forms on ``example``; the ONNX file only where ONNX Runtime is installed.

    Raises:
        RunError: outputs differ from ``expected`` by more than rounding.
    """
    scale = max(1.0, float(expected.abs().max()))
    module = torch.export.load(folder / "program.pt2").module()
    with torch.no_grad():
        _compare("program.pt2", module(example), expected, scale)
        # A single input takes other kernels than a batch; it must work too.
        _compare("program.pt2", module(example[:1]), expected[:1], scale)
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        for rows in (example, example[:1]):
            out = session.run(None, {"input": rows.numpy()})[0]
            _compare("model.onnx", torch.as_tensor(out), expected[: len(rows)], scale)


def _compare(what: str, got: Tensor, expected: Tensor, scale: float) -> None:
    difference = float((got - expected).abs().max()) / scale
    if not difference <= TOLERANCE:
        raise RunError(f"{what} computes something else than the network: relative difference {difference:.2g}.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print and warn about their own insides; errors still come through as exceptions."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
