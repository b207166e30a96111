"""Configurations that ship with moesim, and the loader that reads them."""
