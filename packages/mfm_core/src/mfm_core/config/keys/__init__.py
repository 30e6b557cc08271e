"""Every key of every section with its default and what it does; "ours" marks those that PySlowFast lacks."""
