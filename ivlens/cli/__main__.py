"""`python -m ivlens.cli` is `ivlens`."""

import sys

from ivlens.cli.app import main

sys.exit(main())
