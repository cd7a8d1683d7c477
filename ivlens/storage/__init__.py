"""What survives a crash: files written whole, tables, tensors, run folders and their record."""
