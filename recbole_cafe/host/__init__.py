"""Everything that touches unmodified RecBole."""
