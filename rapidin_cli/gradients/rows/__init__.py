"""What is stored of a gradient: arrays, encoding, and products of stored rows with directions."""
