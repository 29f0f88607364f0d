"""How results look: terminal, Nagios, JSON Lines and others."""
