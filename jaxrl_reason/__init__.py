"""Reinforcement learning of reasoning models in JAX: ISPO, its baselines, and what they rest on."""

__version__ = "0.1.0"
