"""`python -m hswq_hub` is `hswq-hub`."""

from .cli import main

main()
