"""sqid_lib: what users import."""
