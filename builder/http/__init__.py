"""HTTP requests to untrusted URLs and servers: every step is checked and limited."""
