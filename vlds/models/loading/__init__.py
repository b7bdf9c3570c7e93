"""How weights come into a model: from files, by seeded draws, packed, or cut over the ranks."""
