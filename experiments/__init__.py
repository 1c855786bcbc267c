import support  # noqa: F401 (before torch, see support/__init__.py)
