"""Sampling completions."""

from jaxrl_reason.rollout.sampler import SamplingParams, sample

__all__ = ["SamplingParams", "sample"]
