"""A TFDS builder of a few images; TFDS wants builders to live in a package."""
