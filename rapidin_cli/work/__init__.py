"""Work over devices: workers and pools, and what they compute: rows, curvature, forecasts."""
