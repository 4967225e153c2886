"""`pairs generate`: problems of many kinds with drawings and exact answers."""
