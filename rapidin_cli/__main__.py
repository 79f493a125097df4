"""`python -m rapidin_cli` is `rin`."""

from rapidin_cli.cli import main

main()
