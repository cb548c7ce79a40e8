"""A user's images: found, read, localized by a run's network, written to a folder with a page."""
