"""The served model: loading, replacing and publishing it."""
