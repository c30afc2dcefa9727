"""The comparison page. Not written yet: for now the pictures in a published folder are the comparison."""
