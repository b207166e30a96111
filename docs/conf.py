"""Sphinx configuration of the manual."""

from importlib import metadata

project = "moesim"
author = "The moesim contributors"
copyright = "The moesim contributors"
release = metadata.version("moesim")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"moesim {release}"
