"""What runs have written, read and drawn: curves, estimates, plots, studies, reports.  Needs no torch."""
