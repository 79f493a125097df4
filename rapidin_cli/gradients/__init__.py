"""From a batch of examples to cached rows: capture, sketch, quantise."""
