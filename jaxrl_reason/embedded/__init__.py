"""The embedded model: a tiny Qwen2.5, its tokenizer, and how they were made."""
