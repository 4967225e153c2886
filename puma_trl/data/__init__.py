"""Any form of rows → checked rows → batches."""
