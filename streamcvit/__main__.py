"""`python -m streamcvit`, the same as the `streamcvit` command."""

from streamcvit.cli import main

main()
