"""The command line: one file a verb, which parses, calls the library and prints. No logic.

Nothing imports from here. `main` lists the commands under their headings; `adding` has how a
command and its options are written, and `options` those that several commands share.
"""
