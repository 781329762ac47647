"""The whole method on text found on this machine: `llmshearing quickstart`."""
