"""Batching and admission limits."""
