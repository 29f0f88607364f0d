"""What may be done to jobs and nodes. Every step is written down before it runs."""
