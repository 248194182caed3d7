"""The data: the sine or a series from a file, cut into windows, and the batches of an epoch."""

from sinlstm_dist.data.reading import read_values
from sinlstm_dist.data.series import SeriesDataset
from sinlstm_dist.data.sine import SineDataset

__all__ = ["SeriesDataset", "SineDataset", "read_values"]
