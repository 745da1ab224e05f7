"""Files of distributions' packages: in archives, repositories and databases."""
