"""Reports: from answers to what people read and what they do next.

`compose` makes the one view model `rin.report/1` (`view`, schema.json). All else shows it, in a
terminal, as HTML, JSON or CSV, or rewrites the training data by it (`data_export`).
"""
