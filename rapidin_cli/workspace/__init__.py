"""What a project folder holds: rin.toml, rin.lock, .rin/, its store and remotes, its results."""
