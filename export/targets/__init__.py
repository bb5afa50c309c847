"""The forms in which a graph leaves the house: each written by one function and run, for the gate, by another."""
