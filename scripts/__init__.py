"""Thin command lines over the package; installed as ``asynclab.scripts`` and as commands like ``asynclab-plot``."""
