"""``python -m seqvault.cli``."""

import sys

from seqvault.cli import main

if __name__ == "__main__":
    sys.exit(main())
