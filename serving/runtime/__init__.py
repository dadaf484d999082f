"""Shared runtime of both servers: bounded queues and memory, HTTP connections, threads."""
