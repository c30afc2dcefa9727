"""A machine -> how fast it computes and moves bytes: this one by trial, a GPU by what its maker publishes."""
