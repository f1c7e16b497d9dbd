"""`python -m culnig_fast.cli`."""

from culnig_fast.cli import main

main()
