"""The search for a pruning policy on tasks, and its report."""
