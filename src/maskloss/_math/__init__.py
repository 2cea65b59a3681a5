"""The mathematics of a row, of the entries around it and of their reduction; names no library."""
