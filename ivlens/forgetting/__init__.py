"""What a sequence of tasks makes a model forget: plan, cells, evaluation, metrics, tables and figures."""

from ivlens.forgetting.metrics import r_matrix as r_matrix
