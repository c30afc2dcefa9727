"""A source and settings go in; the steps of one stage of `publish` come out, each with all that decides its product."""
