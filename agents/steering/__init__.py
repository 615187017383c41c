"""Steers a user's own PyTorch loop by a controller: no tasks, no lanes, no Gymnasium."""
