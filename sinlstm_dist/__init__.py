"""Train a small LSTM to predict a sine wave on any number of devices, with the same answer."""

from sinlstm_dist import early

if early.is_program():
    early.prepare()
