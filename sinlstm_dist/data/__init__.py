"""The data: the sine or a series from a file, cut into windows, and how an epoch is dealt out."""

from sinlstm_dist.data.series import SeriesDataset, read_values
from sinlstm_dist.data.sine import SineDataset

__all__ = ["SeriesDataset", "SineDataset", "read_values"]
