"""Layers and trees as directories: made, read and compared, name by name below a descriptor."""
