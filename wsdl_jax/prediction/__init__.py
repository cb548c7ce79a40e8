"""A user's images: reading, localizing, and the folder, table and page of what is found."""
