"""Many audits, models by tasks, and the heads that recur in them: across tasks, across models of one shape.

And many studies, each of one task, and the properties of a task by which it makes a model forget (`factorial`).
"""
