"""How the outside gets in: the command line, the HTTP endpoint and the web page."""
