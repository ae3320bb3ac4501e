"""The run folder: its names, its lock, its logs and its checkpoints."""
