"""The site of one or more runs: static pages that open from a folder, without a server."""
