"""Work over devices: which there are, what computes on them, and what: rows, curvature, forecasts.

From outside: `caching.make_plan` and `cache_rows`, `curvature.collect_curvature`, `forecast`,
`worker.build_engine`.
"""
