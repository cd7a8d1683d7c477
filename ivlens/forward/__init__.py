"""What a measurement needs of a model, of whichever kind: read prompts, carry variants of their ends on, unembed."""
