"""Hugging Face directories: reading a source model, its tokenizer and its weight files."""
