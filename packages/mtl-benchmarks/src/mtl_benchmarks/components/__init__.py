"""Parts by name, with options from their signatures: how names, options and values are read."""
