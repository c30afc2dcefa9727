"""A source and its calibration go in; a plan and the quantized file that it describes come out."""
