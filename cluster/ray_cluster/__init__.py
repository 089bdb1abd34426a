"""Ray and Ray Serve: start, placement, tokens, encrypted environment variables, replica watchdog."""
