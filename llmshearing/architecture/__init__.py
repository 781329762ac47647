"""Shapes without torch: axes, coupling tables, families, parameter counts, rules of targets."""
