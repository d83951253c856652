"""What makes events of an app by itself: moments of a calendar, a timer, files that come, hooks that others call."""
