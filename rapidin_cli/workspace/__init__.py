"""What a project folder holds, and what is done with it.

`Workspace` has rin.toml, the store and its remotes (`Places`), the saved results and one
`ProjectCheckpoint` for each checkpoint; nothing below this package imports it. The other files
hold what commands do: `runs`, `asking`, `moving`, `upkeep`, `status`, `diff`, `training_row`.
"""
