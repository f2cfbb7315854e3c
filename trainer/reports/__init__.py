"""What runs have logged in; lists, tables and pictures out."""
