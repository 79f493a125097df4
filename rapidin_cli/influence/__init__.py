"""From a question to scores over the cache."""
