"""What is on disk of a run: its directory, checkpoints and log."""
