"""Past answers made again, and compared with what was answered."""
