"""A shop's own tables: products, judgments and queries under the names and in the files that the shop has."""
