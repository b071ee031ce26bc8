"""What data classes that check their fields have in common."""


class Checked:
    """A data class that refuses values of its fields, each by name."""

    def _require(self, field: str, holds: bool, allowed: str) -> None:
        """Raises a ValueError unless `holds`; `allowed` says what the field must be."""
        if not holds:
            value = getattr(self, field)
            raise ValueError(f"`{self._key(field)}` must be {allowed}. Received: {value!r}")

    @classmethod
    def _key(cls, field: str) -> str:
        """What a user calls the field."""
        return field
