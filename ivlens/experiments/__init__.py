"""Open questions, each as a command: what is run for it, beside which control, and what the numbers say."""
