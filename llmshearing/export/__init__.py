"""Writing a Hugging Face directory from a checkpoint or a one-shot cut, and verifying it."""
