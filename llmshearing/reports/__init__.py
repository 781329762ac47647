"""Run directories as plots, tables and one HTML page."""
