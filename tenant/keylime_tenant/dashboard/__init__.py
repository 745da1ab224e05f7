"""The local web page of `keylime_tenant dashboard`: what it shows, how it looks, who may see it.

`gathering` asks the services, modules named after pages make values of what they said, `rendering` makes HTML
of those, `access` says who is let in, and `handlers` is the thin rest.
"""
