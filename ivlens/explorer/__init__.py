"""Looking inside: every head of a model on a page or in a notebook, and what it attends to, does and writes."""
