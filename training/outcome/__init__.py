"""What a finished run holds: metrics, figures, pictures, the report."""
