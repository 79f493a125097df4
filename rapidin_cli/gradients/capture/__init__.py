"""From a backward pass to each trained tensor's inputs and output gradients.

`targets` finds what was trained, `uses` knows how modules use it, `watching` hooks them, `wide` is
for what is as wide as a vocabulary.
"""
