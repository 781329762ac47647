"""`python data_prep/describe.py` runs `llmshearing describe`."""

import sys

from llmshearing.cli import main

if __name__ == "__main__":
    sys.exit(main(["describe", *sys.argv[1:]]))
