"""Teachers that are served, against teachers in the trainer's own process."""
