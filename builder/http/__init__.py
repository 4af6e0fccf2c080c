"""HTTP towards untrusted URLs and servers: every step is guarded and bounded."""
