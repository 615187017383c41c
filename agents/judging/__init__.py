"""Runs of many controllers side by side, and what follows from them."""
