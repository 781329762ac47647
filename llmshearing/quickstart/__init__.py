"""The whole path on text found on this machine, from text to a sheared model and its control."""

from llmshearing.quickstart.path import run

__all__ = ["run"]
