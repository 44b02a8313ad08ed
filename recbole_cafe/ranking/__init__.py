"""Where the target stands among its candidates, and what that is worth under a metric."""
