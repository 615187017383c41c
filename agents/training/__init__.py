"""Trainings of policies with Stable-Baselines3."""
