"""From a name to a folder: what names mean, where copies lie, how they are fetched and checked."""
