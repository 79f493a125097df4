"""The way in: `rin init`, `rin doctor`, `rin demo`."""
