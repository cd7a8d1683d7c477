"""ivlens: which attention heads carry an instruction, what vector do they write, and what did fine-tuning do to it?"""
