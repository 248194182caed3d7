"""Train a small LSTM to predict a sine wave on any number of devices, with the same answer."""
