"""The root command, what it prints, and the figures that it draws."""
