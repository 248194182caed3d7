"""A run's folder: its files, its record, its checkpoints, and the trained weights read back."""
