"""torch.compile of a tower, block by block: one graph serves all blocks that are alike.

Blocks are compiled in place, so names of parameters stay as they are, checkpoints too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dfdet.errors import ConfigError

logger = logging.getLogger(__name__)

STACKS = (nn.ModuleList, nn.Sequential)


def stacked_blocks(tower: nn.Module) -> list[nn.Module]:
    """The modules that a tower repeats: members of its outermost lists of two or more of one class."""
    children = list(tower.children())
    if isinstance(tower, STACKS) and len(children) > 1 and len({type(child) for child in children}) == 1:
        return children
    return [block for child in children for block in stacked_blocks(child)]


def compile_blocks(tower: nn.Module) -> None:
    """Compiles the tower's blocks at their first call each.

    Raises:
        ConfigError: The tower repeats nothing.
    """
    blocks = stacked_blocks(tower)
    if not blocks:
        raise ConfigError(
            f"engine.compile=True: {type(tower).__name__} has no list of equal blocks to compile;"
            " set --engine.compile False"
        )
    for block in blocks:
        block.compile()


def is_compiled(tower: nn.Module) -> bool:
    """Whether blocks of the tower are compiled."""
    return any(block._compiled_call_impl is not None for block in stacked_blocks(tower))


def undo(tower: nn.Module) -> None:
    """Takes the compilation back."""
    for block in stacked_blocks(tower):
        block._compiled_call_impl = None


@contextmanager
def or_eager(tower: nn.Module) -> Iterator[list[str]]:
    """Runs a first call; if it fails and the tower is compiled, it is eager again and the log says why.

    Gives a list that holds the reason after such a failure: call again then. A failure that has
    another cause, such as too little memory, comes again and is raised.
    """
    reasons: list[str] = []
    try:
        yield reasons
    except Exception as error:  # a compiler may fail with anything
        if not is_compiled(tower):
            raise
        undo(tower)
        reasons.append(_reason(error))
        logger.warning("engine.compile=True: compilation failed, the tower stays eager (%s)", reasons[0])


def _reason(error: BaseException) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
