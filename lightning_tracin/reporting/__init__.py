"""Results for people: tables, findings in words, figures, pages, and sinks for loggers."""
