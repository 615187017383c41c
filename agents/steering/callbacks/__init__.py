"""Steering inside other libraries' trainers, each in an extra of its own."""
