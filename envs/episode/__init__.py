"""A run with a budget and a target: what it costs, what it earns, how it ends, what is kept of it."""
