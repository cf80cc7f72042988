"""`python -m tserve` is the program `tserve`."""

from __future__ import annotations

import sys

from tserve.cli.main import main

sys.exit(main())
