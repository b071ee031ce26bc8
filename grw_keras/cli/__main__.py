"""python -m grw_keras.cli: the same as grw-keras."""

import sys

from grw_keras.cli import main

if __name__ == "__main__":
    sys.exit(main())
