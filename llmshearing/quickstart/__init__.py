"""The whole path on text found on this machine."""
