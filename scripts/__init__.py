"""The commands, one file each; ``loopwright COMMAND --help`` or ``python scripts/COMMAND.py --help``."""
