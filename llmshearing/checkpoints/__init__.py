"""Hugging Face directories and run checkpoints: reading, writing, verifying."""
