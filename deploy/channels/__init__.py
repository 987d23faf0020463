"""Channels of a Relax graph: what values they can take, which go together, who reads them."""
