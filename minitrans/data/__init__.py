"""Examples and texts from files, and tasks with their splits."""
