"""`python -m culnig_fast`."""

from culnig_fast.cli import main

main()
