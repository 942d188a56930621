"""Who runs when: the core plans steps, the thread gives it a place to run."""
