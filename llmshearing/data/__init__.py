"""What training reads: the data tree on disk, its schema, datasets and loaders."""
