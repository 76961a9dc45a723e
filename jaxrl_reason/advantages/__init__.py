"""Advantages: [B] rewards to credit per rollout or per token."""
