"""What a session does: act, step, remember, learn."""
