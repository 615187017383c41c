"""Who controls: controllers, how learned ones are trained, and how all are judged."""
