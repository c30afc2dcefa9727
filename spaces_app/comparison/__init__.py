"""A request and a model go in; events come out, and at the end the pictures with their figures."""
