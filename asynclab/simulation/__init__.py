"""Asynchronous sessions in one process: in virtual time, or in the order in which real ones took their turns."""
