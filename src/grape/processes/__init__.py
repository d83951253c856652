"""Worker processes: what runs them, how they are confined, started, listened to and ended, and their last words."""
