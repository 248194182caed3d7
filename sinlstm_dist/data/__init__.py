"""The data: the sine or a series from a file, cut into windows, and how an epoch is dealt out."""
