"""What an exported model is worth: held-out loss per domain."""
