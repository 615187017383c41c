"""Who controls: schedules and learned policies, how they are trained, saved and judged."""
