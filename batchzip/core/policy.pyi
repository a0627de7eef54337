"""How a batch is divided between the caller and the lanes, and when it is not.

The module has functions for the core only; its source says what they decide and why.
"""
