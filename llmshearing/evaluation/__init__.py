"""Measures exported models: held-out loss, benchmark scores, speed, importance of units."""
