"""Looking at a set: tables and a contact sheet."""
