"""Whatever rin writes: what people read, made harmless, and files, whole or not at all.

From outside: all of it. `console` is the only place that prints.
"""
