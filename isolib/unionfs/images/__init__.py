"""Images: what they say of themselves, and how they come and go."""
