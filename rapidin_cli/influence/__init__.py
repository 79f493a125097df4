"""From a question to scores over the cached rows.

From outside: `Question`, `Options`, and a `Session` of `Member`s, which returns `Answered`.
Inside: `queries` makes tokens and gradients, `scan` the sketched ranking, `exact` the exact one,
`answering` leads through both.
"""
