"""For other people's trainers; each module needs what it is named after, and nothing else imports it."""
