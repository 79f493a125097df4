"""Damage of every kind to a local store: it is named, never served, and mended."""
