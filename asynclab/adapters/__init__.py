"""Gymnasium's many kinds of environments, spaces, emulators and pictures -> arrays, and an env that can be traced."""
