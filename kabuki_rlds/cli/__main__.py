"""Runs the command line with `python -m kabuki_rlds.cli`."""

import sys

from kabuki_rlds.cli.main import main

sys.exit(main())
