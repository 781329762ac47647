"""Small language models out of large ones, after "Sheared LLaMA" (arXiv 2310.06694)."""

__version__ = "0.1.0"
