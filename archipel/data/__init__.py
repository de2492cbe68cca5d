"""Real data, found by path, ``ARCHIPEL_DATA``, cache or download; generators; and fixed, seeded splits."""

from archipel.data.catalogue import available, describe
from archipel.data.dataset import Dataset, Split
from archipel.data.load import load

__all__ = ["Dataset", "Split", "available", "describe", "load"]
