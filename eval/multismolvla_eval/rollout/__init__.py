"""One episode and the processes that run many of them."""
