"""The version: here and not in the metadata of an installation, which uploads and images lack."""

__version__ = "0.1.0"
