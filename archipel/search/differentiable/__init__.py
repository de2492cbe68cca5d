"""Differentiable search: one loop with five slots (mix, arch-gradient, objective, schedule, select)."""

from archipel.search.differentiable.arch_gradient import ArchGradient, FirstOrder, SecondOrder
from archipel.search.differentiable.loop import DifferentiableSearch
from archipel.search.differentiable.mix import Mix, Softmax
from archipel.search.differentiable.objective import CrossEntropy, SearchObjective
from archipel.search.differentiable.schedule import Schedule
from archipel.search.differentiable.select import Argmax, Select

__all__ = [
    "ArchGradient",
    "Argmax",
    "CrossEntropy",
    "DifferentiableSearch",
    "FirstOrder",
    "Mix",
    "Schedule",
    "SearchObjective",
    "SecondOrder",
    "Select",
    "Softmax",
]
