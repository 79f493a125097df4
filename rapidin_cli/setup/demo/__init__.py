"""What `rin demo` works on: a dataset with planted rows, and a small model trained on it."""
