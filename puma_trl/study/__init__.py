"""The mini study: runs that differ in one setting, and the report on them."""
