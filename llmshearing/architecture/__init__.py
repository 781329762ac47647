"""Shape algebra without torch: axes, shapes, coupling tables, parameter counts, target rules."""
