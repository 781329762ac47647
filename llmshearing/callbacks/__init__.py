"""What observes a run and steers it: Composer callbacks and algorithms."""
