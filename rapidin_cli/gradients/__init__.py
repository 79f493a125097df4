"""From a batch of examples to rows that can be stored and scored.

From outside: `engine.GradientEngine`, `passes.Passes`, `layout.RowLayout`, `rows.kinds.row_kind`,
`stored_curvature`. `compress` makes a gradient small, `rows` stores and multiplies it.
"""
