"""``python -m grape``: the command ``grape``."""

from grape.cli.main import main

if __name__ == "__main__":
    main()
