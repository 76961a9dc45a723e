"""Qwen2.5: configuration, decoder, Hugging Face weights, chunked log-probs."""

from jaxrl_reason.model.config import ModelConfig
from jaxrl_reason.model.decoder import forward, forward_hidden, init_params
from jaxrl_reason.model.hf import load_pretrained, save_pretrained

__all__ = [
    "ModelConfig",
    "forward",
    "forward_hidden",
    "init_params",
    "load_pretrained",
    "save_pretrained",
]
