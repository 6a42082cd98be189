"""Errors a user can act on: each says what is wrong, with which file or value, and what to do."""


class SonorantError(Exception):
    """Base of all errors that the library raises on purpose. The command line exits with 2."""


class AudioError(SonorantError):
    """An audio file or signal cannot be used: missing, damaged, not finite, wrong rate or shape."""


class CheckpointError(SonorantError):
    """A model file cannot be used: missing, damaged, of another model, or unsafe to open."""


class ConfigError(SonorantError):
    """A configuration or recipe is wrong: unknown field, impossible value."""


class ShapeError(SonorantError):
    """A tensor has a shape the module cannot take."""


class FormatError(SonorantError):
    """A container or packed file is damaged or of another format."""


class DependencyError(SonorantError):
    """An optional package is needed; the message names the extra that installs it."""
