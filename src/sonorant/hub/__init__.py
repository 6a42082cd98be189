"""Names to files to tensors: the table of known models, fetching, and reading checkpoints safely.

Knows no system: classes and layout translators are named in `models.toml` and imported when used.
"""
