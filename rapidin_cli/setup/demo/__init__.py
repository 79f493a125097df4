"""What `rin demo` works on: an instruction set with planted rows, and a small model of it."""
