"""``python -m seqvault.cli``."""

import sys

from seqvault.cli import main

sys.exit(main())
