"""Real data, found by path, ``ARCHIPEL_DATA``, cache or download; generators; and fixed, seeded splits."""

from archipel.data.dataset import Dataset, Split

__all__ = ["Dataset", "Split"]
