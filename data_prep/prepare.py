"""`python data_prep/prepare.py` runs `llmshearing.preparation.prepare`."""

import sys

from llmshearing.preparation.prepare import main

if __name__ == "__main__":
    sys.exit(main())
