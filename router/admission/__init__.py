"""Who is let in and when: limits, fair shares, the line at the door."""
