"""The judgements: one file per check. Site folders are appended to this package path."""
