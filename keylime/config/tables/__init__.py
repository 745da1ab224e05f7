"""The option tables, one module per component: the single source of names, defaults and help."""
