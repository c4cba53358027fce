"""A bundle: the folder that a stage writes and the next reads. Its manifest holds all a user must know."""

from segcore.bundle.folder import open_bundle as open_bundle
