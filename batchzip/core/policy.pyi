"""Policy: when and how a batch is divided between the caller and the lanes.

Only the core can call the functions of this module. Its source says what they decide and why.
"""
