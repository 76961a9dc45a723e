"""Problems, prompts, tokenizers, and the stream of training batches."""
