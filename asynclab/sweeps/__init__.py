"""Runs in a row: what became of the jobs, and studies of Optuna that go on."""

from asynclab.sweeps.watch import SweepWatch, in_words, sentence

__all__ = ["SweepWatch", "in_words", "sentence"]
