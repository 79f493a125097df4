"""A gradient made small: count-sketches, the paper's OPORP, low-rank factors."""
