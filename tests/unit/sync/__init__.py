"""Push, pull, reading through, gc and export: one contract for every kind of place."""
