"""One module per verb: parses, calls the library, prints. No logic."""
