"""What both servers stand on: bounded work, bounded memory, HTTP connections, threads that last."""
