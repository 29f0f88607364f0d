"""Readers of what tools and files say. Each turns text into values and says Unparsable when it cannot."""
