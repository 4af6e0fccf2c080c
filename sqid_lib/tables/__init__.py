"""Files to checked Arrow tables."""
