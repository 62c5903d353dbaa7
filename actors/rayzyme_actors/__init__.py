"""Everything that lives on Ray: long-lived actors that hold models and embeddings, and what sends work to them.

Importing this package settles Ray's authentication mode, because Ray reads it when it is imported itself: see
`rayzyme_actors.connection`.
"""

from rayzyme_actors.connection import settle_authentication

settle_authentication()
