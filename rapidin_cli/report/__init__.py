"""Reports: from answers to what people read and what they do next.

`compose` makes the one view model `rin.report/1` (`view`, schema.json). The others show it, in a
terminal, as HTML, JSON or CSV, or rewrite the training data with it (`data_export`).
"""
