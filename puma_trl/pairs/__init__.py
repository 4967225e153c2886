"""Tools that make text-rich/vision-rich pairs."""
