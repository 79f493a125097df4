"""Checkpoints: where they are, what they are (fingerprint), how they are loaded, how they weigh."""
