"""The pages for people: a server that reads the database and the worker, and a page that shows it."""
