"""The base of every recipe section: validated once, frozen, and itself the object that acts."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, strict section of a recipe: unknown keys are errors and nothing is coerced (`rank: "8"` is refused)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
