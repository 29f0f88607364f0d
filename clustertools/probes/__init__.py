"""Small programs that run as children and print JSON."""
