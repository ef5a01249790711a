"""The commands: ldm-train, ldm-sample and ldm-convert, in a checkout train.py, sample.py and convert.py."""
