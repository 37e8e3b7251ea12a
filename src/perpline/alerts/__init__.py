"""Alarms: what is wrong, told to people. Reads what a worker and the tables say, and nothing that moves imports it."""
