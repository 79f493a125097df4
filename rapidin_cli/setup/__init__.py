"""Getting started: `rin init`, `rin doctor`, `rin demo`.

From outside: `proposal` (propose, describe, initialise), `doctor.examine`, `demo.story.run_demo`.
"""
