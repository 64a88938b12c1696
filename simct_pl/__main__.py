"""`python -m simct_pl`."""

import sys

from simct_pl.commands.main import main

sys.exit(main())
