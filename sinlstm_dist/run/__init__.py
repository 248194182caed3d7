"""A run's folder: the hold on it, its record, its checkpoints, and experiment trackers."""
