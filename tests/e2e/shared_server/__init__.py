"""Tests of one server; a package, because the fixture that starts it is to end it with the last of them."""
