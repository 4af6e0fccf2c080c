"""The explorer: a local web page to look at a release, its queries, their rankings and the neighbours of products."""
