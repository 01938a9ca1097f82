"""Who runs frames: the backend contract, the scheduler, and the backends behind it."""
