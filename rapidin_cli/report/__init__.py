"""Reports: one view model, a terminal and an HTML face."""
