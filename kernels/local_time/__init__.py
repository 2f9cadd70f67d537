"""Parts of local time: the hour, the minute of the day, the day of the week."""
