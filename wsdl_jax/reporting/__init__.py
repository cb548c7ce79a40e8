"""Reports: results of runs as tables, curves, a gallery and a page."""
