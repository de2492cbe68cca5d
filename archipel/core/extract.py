"""Taking one decided network out of a module with choices: a plain module with its own copies of the weights."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from archipel.core.choice import Decider, Undecided


def extract(module: nn.Module, decider: Decider) -> nn.Module:
    """The plain network that a decider makes of ``module``.

    Choice modules are replaced by what was chosen; other modules keep their class and get copies of their tensors.
    Modules and parameters that were shared stay shared. Works on any device, the meta device included.
    """
    modules: dict[int, nn.Module] = {}
    tensors: dict[int, Tensor] = {}

    def copy_tensor(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        if id(t) not in tensors:
            new = t.detach().clone()
            tensors[id(t)] = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
        return tensors[id(t)]

    def inner(m: nn.Module) -> nn.Module:
        if id(m) not in modules:
            training = m.training
            modules[id(m)] = m.extract(decider, inner) if isinstance(m, Undecided) else clone(m)
            modules[id(m)].training = training
        return modules[id(m)]

    def clone(m: nn.Module) -> nn.Module:
        new = object.__new__(type(m))
        state = dict(m.__dict__)
        for hooks in [k for k, v in state.items() if k.endswith("_hooks") and isinstance(v, dict)]:
            state[hooks] = OrderedDict()
        state["_parameters"] = {k: copy_tensor(p) for k, p in m._parameters.items()}
        state["_buffers"] = {k: copy_tensor(b) for k, b in m._buffers.items()}
        state["_modules"] = {}
        new.__dict__.update(state)
        modules[id(m)] = new  # before the children: a child may refer back
        new._modules.update({k: None if c is None else inner(c) for k, c in m._modules.items()})
        return new

    with torch.no_grad():
        return inner(module)
