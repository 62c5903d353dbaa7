"""Reactions as text: reading, comparing, atom-mapping and drawing them, and the files they come in.

Every function takes reaction SMILES, `reactants>>products` or `reactants>agents>products`, and raises
`InvalidReaction` with a reason that a biologist can act on. Nothing is repaired in silence: what is left out or
added on the way to an encoder is said in a `note`.
"""

from rayzyme.chemistry.atom_mapping import (
    MappedReaction,
    MappingState,
    PreparedReaction,
    map_atoms,
    mapping_state,
    prepare_reactions,
)
from rayzyme.chemistry.drawing import draw_reaction
from rayzyme.chemistry.files import ReactionFile, ReactionRecord, RejectedReaction, read_reactions
from rayzyme.chemistry.reactions import Reaction, canonical_reaction, parse_reaction, reaction_key

__all__ = [
    "MappedReaction",
    "MappingState",
    "PreparedReaction",
    "Reaction",
    "ReactionFile",
    "ReactionRecord",
    "RejectedReaction",
    "canonical_reaction",
    "draw_reaction",
    "map_atoms",
    "mapping_state",
    "parse_reaction",
    "prepare_reactions",
    "reaction_key",
    "read_reactions",
]
