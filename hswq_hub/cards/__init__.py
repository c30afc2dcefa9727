"""The record and the figures of a finished folder go in; its model card comes out."""
