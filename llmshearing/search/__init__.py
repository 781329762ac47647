"""Search for the best shape within budgets: score candidates, recover the best few, compare."""
