"""Many audits, models by tasks, and the heads that recur in them: across tasks, across models of one shape."""
