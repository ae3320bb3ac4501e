"""Agents that play: a checkpoint, a run while it trains, and in somebody else's program."""
