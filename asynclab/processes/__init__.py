"""Processes: how sessions are started, watched and asked to stand still or end."""
