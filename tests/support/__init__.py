"""What several test modules share: made models and projects, servers, faults, oracles."""
