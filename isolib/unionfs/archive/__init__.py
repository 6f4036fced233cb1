"""Layers as archives: tars, what they are compressed by, and what is needed to make them again."""
