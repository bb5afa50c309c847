"""The page at `/`: modules of script, a style and a skeleton, put together to one HTML file."""
