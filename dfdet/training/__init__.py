"""One optimizer step: losses, engine, schedule, clock and meter."""
