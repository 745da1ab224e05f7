"""What a GRUB command can do to a boot: nothing, start a kernel, or read something that must be known.

GRUB measures each command as it is carried out, with its variables filled in. Conditions, variables and menus
differ between boots of one machine (`boot_success`, the A/B slot, a timeout) and start nothing by themselves.
What reads files or code counts by its whole text.
"""

import enum
import re
from collections.abc import Sequence

# fmt: off
_HARMLESS = frozenset({
    "[", "[[", "test", "set", "export", "unset", "echo", "true", "false", "return", "shift", "break",
    "continue", "setparams", "menuentry", "submenu", "hiddenentry", "terminal_input", "terminal_output",
    "terminal", "serial", "search", "search.fs_uuid", "search.fs_label", "search.file", "save_env",
    "load_env", "sleep", "regexp", "gptpriority", "smbios", "fwsetup", "keystatus",
    "increment", "decrement", "clear", "blscfg", "background_color", "boot", "cpuid",
})
# They say where files are read from, or whether signatures count.
_TELLING_VARIABLES = frozenset({
    "prefix", "theme", "locale_dir", "secondary_locale_dir", "lang", "icondir", "env_block",
    "check_signatures", "check_appended_signatures", "superusers",
})
# Of the harmless ones those that open no file: what is read behind `linux` must be what is booted.
_READ_NOTHING = frozenset({
    "[", "[[", "test", "set", "export", "unset", "echo", "true", "false", "return", "shift", "break",
    "continue", "setparams", "save_env", "sleep", "increment", "decrement", "clear", "boot",
})
# fmt: on
_UNJUDGED_NAMES = frozenset({"grubenv", "grub.cfg", "theme.txt"})
_UNJUDGED_FOLDERS = (  # and endings of the files in them
    ("/locale", (".mo", ".gmo", ".mo.gz")),
    ("/loader/entries", (".conf",)),
)


class GrubCommand(enum.Enum):
    """How a command is judged."""

    HARMLESS = "whatever it says"
    KERNEL = "by the blessed command lines"
    INITRD = "it must name a file, whose digest is judged"
    LISTED = "by its whole text"


def grub_command(text: str) -> GrubCommand:
    """How the command `text`, in the words that GRUB measured, is judged."""
    verb, _, rest = text.partition(" ")
    if verb in {"linux", "linuxefi", "linux16"}:
        return GrubCommand.KERNEL
    if verb in {"initrd", "initrdefi", "initrd16"}:
        return GrubCommand.INITRD if rest.strip() else GrubCommand.LISTED
    name, equals, _ = (rest if verb in {"set", "export"} else text).partition("=")
    if name in _TELLING_VARIABLES and (equals or verb == "export"):
        return GrubCommand.LISTED
    is_assignment = bool(equals) and name.replace("_", "").isalnum()
    # Options: a test of a file's size reads it, and so does `load_env -f FILE`.
    reads = (verb in {"[", "[[", "test"} and "-s" in rest.split()) or (verb == "load_env" and bool(rest))
    if (verb in _HARMLESS and not reads) or is_assignment:
        return GrubCommand.HARMLESS
    return GrubCommand.LISTED


def reads_unseen(texts: Sequence[str], initrds: int) -> tuple[int, ...]:
    """Which of all commands of a boot, `texts`, may read other files last than the kernel and its `initrds`.

    GRUB measures whatever it opens, so that files which are only read behind `linux`, or by an `initrd` of
    more of them, could take the place of those that were booted: nothing vouches for the names of files.
    """
    kinds = [grub_command(text) for text in texts]
    if GrubCommand.KERNEL not in kinds:
        return ()
    first = len(kinds) - kinds[::-1].index(GrubCommand.KERNEL)
    behind = range(first, len(kinds))
    loads = tuple(at for at in behind if kinds[at] is GrubCommand.INITRD)
    files = sum(len(texts[at].split()) - 1 for at in loads)
    others = tuple(at for at in behind if kinds[at] is GrubCommand.HARMLESS and not _reads_nothing(texts[at]))
    return others if files == initrds else (*loads, *others)


def _reads_nothing(text: str) -> bool:
    verb = text.partition(" ")[0]
    return verb in _READ_NOTHING or "=" in verb


def is_unjudged_file(name: str) -> bool:
    """Whether GRUB reads a file of this name for what a user sees, for the next boot, or for its commands.

    They differ between boots of one machine (grubenv, entries of other kernels).
    """
    folder, slash, base = name.rpartition("/")
    return bool(slash) and (
        base in _UNJUDGED_NAMES
        or base.startswith(("grub.cfg-", "grub.cfg."))
        or base.endswith((".pf2", ".png"))
        or any(
            folder.rstrip("/").endswith(place) and base.endswith(endings)
            for place, endings in _UNJUDGED_FOLDERS
        )
    )


def without_place(text: str) -> str:
    """`text` without the number of a disk, the server and the card that a machine was booted from.

    A disk that is plugged in moves the numbers of the others. What is read there is judged by its digest.
    """
    for place, kept in _PLACES:
        text = place.sub(kept, text)
    return text


def same_words(one: str, other: str) -> bool:
    """Whether two command lines are the same but for GRUB's quotes: it adds them to one of its two texts."""
    return _bare(one) == _bare(other)


def _bare(line: str) -> str:
    return " ".join(without_place(line).translate(_QUOTES).split())


_PLACES = (
    (re.compile(r"\(hd\d{1,3}(?=[,)])"), "(hd"),
    (re.compile(r"\((tftp|https?),[^()]{1,255}\)"), r"(\1)"),
    (re.compile(r"(?<=grub\.cfg-)01(-[0-9a-f]{2}){6}|(?<=grub\.cfg-)01-[0-9a-f]{2}(:[0-9a-f]{2}){5}"), ""),
)
_QUOTES = {ord(character): None for character in "\"'\\"}
