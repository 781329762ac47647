"""`python data_prep/describe.py` runs `llmshearing.preparation.describe`."""

import sys

from llmshearing.preparation.describe import main

if __name__ == "__main__":
    sys.exit(main())
