"""The cold start: demonstrations gathered and cached, SFT steps driven."""
