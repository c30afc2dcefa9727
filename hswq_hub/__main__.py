"""`python -m hswq_hub` is `hswq-hub`."""

from .cli.main import main

main()
