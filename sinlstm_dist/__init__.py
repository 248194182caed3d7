"""Train a small LSTM on a sine wave: the same answer on any number of devices."""

from sinlstm_dist import early

__version__ = "0.1.0"  # the only place that says so: pyproject.toml reads it here

if early.is_program():
    early.prepare()
