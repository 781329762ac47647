"""`python data_prep/prepare.py` runs `llmshearing prepare`."""

import sys

from llmshearing.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
