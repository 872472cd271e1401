"""From rows to batches: reading files, tokenising, ordering, padding."""
