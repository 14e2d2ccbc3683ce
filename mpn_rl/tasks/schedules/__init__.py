"""Runs of several tasks, and of tasks that change: which one an episode is of."""
