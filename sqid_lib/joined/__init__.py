"""ESCI joined with SQID: the rows of every config."""
