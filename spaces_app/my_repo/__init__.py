"""HSWQ my repo: a page on which visitors have a model published by a job on their own account."""
