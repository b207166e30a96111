"""Calibration: measured kernel times in, fitted parameters with their error on unseen shapes out.

Nothing that a simulation runs imports this package.
"""
