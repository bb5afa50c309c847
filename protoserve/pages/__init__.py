"""Answers and reports for people: words, and HTML that needs nothing but itself."""
