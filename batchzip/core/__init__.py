"""The compiled core: it does all work per page. Each `.pyi` is its module's manual."""
