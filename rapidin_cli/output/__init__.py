"""Whatever rin writes for people: the printer, sanitising, templates, files written whole."""
