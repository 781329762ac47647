"""The whole path on text found on this machine, from text to a sheared model and its control.

    llmshearing quickstart [--out DIR] [--model HF_DIR]

This process only starts others and looks on, so it imports nothing large.
"""

from llmshearing.quickstart.path import run

__all__ = ["run"]
