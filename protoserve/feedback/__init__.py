"""Feedback on answers: its records, where they are kept, and what is made of them."""
