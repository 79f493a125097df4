"""Whatever rin writes: text for people, made harmless, and files, whole or not at all.

Other packages may use all of it. `console` is the only place that prints.
"""
