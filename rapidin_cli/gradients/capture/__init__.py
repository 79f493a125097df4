"""From a backward pass to each trained tensor's inputs and output gradients.

`targets` finds what was trained and `trial` tries it. `uses` knows how modules use a tensor, and
`handed` how functions do that `functions` sees; `watching` hooks both. What arrives is x and d:
`sides` says what d may be, `wide` is as wide as a vocabulary, `blocks` as all experts.
"""
