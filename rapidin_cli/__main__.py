"""`python -m rapidin_cli` is `rin`."""

from rapidin_cli.commands.main import main

main()
