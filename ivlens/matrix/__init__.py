"""Many audits, models by tasks, as independent jobs: which heads recur across tasks, and across models of one shape?"""
