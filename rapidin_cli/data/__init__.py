"""Training data: rows in, tokenised examples out."""
