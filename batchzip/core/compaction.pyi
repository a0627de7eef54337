"""How a pool moves objects together, so that memory can be given back.

The module has functions for the core only; its source says how.
"""
