"""`python -m simct_pl`."""

import sys

from simct_pl.cli import main

sys.exit(main())
