"""Signals: what is read off the model about rollouts that already exist."""
