"""Exit codes of a cluster's roles and of its supervisor, one for each kind of failure."""

EXIT_BAD_CLUSTER = 64
"""The description of the cluster is wrong, or names no task for this process (EX_USAGE)."""
EXIT_OTHER_RUN = 65
"""The folder holds checkpoints of another model or of other data (EX_DATAERR)."""
EXIT_NO_FEATURE_HOST = 66
"""No feature host answered in time (EX_NOINPUT)."""
EXIT_DAMAGED_EXAMPLES = 67
"""More files of Examples are damaged than ``training.max_damaged_files``."""
EXIT_WORKERS_LOST = 68
"""Every worker of a chief that nobody supervises was lost, and none came back (EX_NOHOST)."""
EXIT_MISSING_ROLE = 69
"""A role did not come up in time (EX_UNAVAILABLE)."""
EXIT_GAVE_UP = 70
"""A role died more often than the policy restarts it (EX_SOFTWARE)."""
EXIT_PORT_IN_USE = 73
"""Something else listens at a role's port (EX_CANTCREAT)."""
EXIT_OTHER_VERSION = 76
"""Roles run different versions of the code or of its libraries (EX_PROTOCOL)."""
EXIT_OTHER_SCHEMA = 77
"""A feature host has another feature spec, other requests, or is no feature host."""
