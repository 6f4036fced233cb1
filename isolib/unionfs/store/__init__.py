"""What a store keeps: records, locks, trees, and how all of it stays whole."""
