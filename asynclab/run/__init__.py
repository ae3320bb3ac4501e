"""The parent of a run: it refuses what cannot work, starts sessions, writes all logs, and ends."""
