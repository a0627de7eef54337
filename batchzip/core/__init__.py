"""The compiled core: all that is done per page, and nothing else; each `.pyi` is its module's manual."""
