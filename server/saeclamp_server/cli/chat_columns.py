"""The conversations of a chat, one a column, and how the steered one is steered; which may change between two questions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saeclamp_saes.concurrency import gather_first_error
from saeclamp_saes.io.sanitize import escape_to_one_line
from saeclamp_server.cli.server_client import CommandError
from saeclamp_server.cli.steering_flags import in_words, merge_variant

if TYPE_CHECKING:
    from saeclamp import AsyncClient, Receipt
    from saeclamp.types import Clamp, Steering, Validation, Variant


@dataclass
class ChatColumn:
    """A conversation of its own: steered answers lead elsewhere."""

    title: str
    model: str | None = None
    steering: Steering | None = None
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    answer: str = ""
    """The answer, as far as it has come."""
    receipt: Receipt | None = None

    def reset(self) -> None:
        """Forget what was said."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.answer, self.receipt = "", None

    async def ask(self, client: AsyncClient, question: str, sampling: dict[str, Any]) -> None:
        """Stream an answer. One that is stopped stays as far as it came; without any, the question is taken back."""
        self.messages.append({"role": "user", "content": question})
        self.answer, self.receipt = "", None
        try:
            stream = await client.chat.completions.create(
                messages=self.messages, model=self.model, steering=self.steering, stream=True, **sampling
            )
            async with stream:  # which ends the generation too, where this is stopped
                async for chunk in stream:
                    self.answer += chunk.text
                    self.receipt = chunk.steering or self.receipt
        finally:
            if self.answer:
                self.messages.append({"role": "assistant", "content": self.answer})
            else:
                self.messages.pop()


@dataclass
class Dialogue:
    """All columns of a chat, which are asked at once, and the steering of the steered one."""

    client: AsyncClient
    sampling: dict[str, Any]
    own: Steering | None = None
    """Steering that is not the variant's."""
    variant: Variant | None = None
    prompted: str | None = None
    columns: list[ChatColumn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.columns = [ChatColumn("default")]
        if self.prompted:
            self.columns.append(ChatColumn("prompted", system=self.prompted))
        self.reset()
        self.steer(self.own, self.variant)

    @property
    def steering(self) -> Steering | None:
        """The steering of the steered column, the variant's part among it."""
        return merge_variant(self.variant, self.own)

    def reset(self) -> None:
        """Begin anew in all columns."""
        for column in self.columns:
            column.reset()

    def steer(self, own: Steering | None, variant: Variant | None) -> None:
        """Steer otherwise from now on: what has been said stays. A steered column comes and goes with the steering."""
        self.own, self.variant = own, variant
        steered = next((column for column in self.columns if column.steering or column.model), None)
        if own is None and variant is None:
            if steered is not None:
                self.columns.remove(steered)
            return
        if steered is None:
            steered = ChatColumn("steered", messages=[*self.columns[0].messages])
            self.columns.insert(1, steered)
        steered.steering, steered.model = own, variant.id if variant else None
        steered.title = "steered" if variant is None else f"{variant.id}, steered" if own else variant.id

    async def ask(self, question: str) -> None:
        """Answer in all columns at once."""
        await gather_first_error(column.ask(self.client, question, self.sampling) for column in self.columns)

    async def clamp(self, feature: str, clamp: Clamp | None) -> Validation | None:
        """
        Clamp a feature, in place of the clamp that it has; None takes that away. What the server refuses changes nothing.

        Raises KeyError where there is no clamp to be taken away.
        """
        from saeclamp.types import Steering

        kept = tuple(one for one in self.own.interventions if str(one.feature) != feature) if self.own else ()
        if clamp is None and len(kept) == len(self.own.interventions if self.own else ()):
            raise KeyError(feature)
        interventions = (*kept, *([clamp] if clamp else []))
        rules, readout, receipt = (
            (self.own.rules, self.own.readout, self.own.receipt) if self.own else ((), None, "summary")
        )
        own = None
        if interventions or rules or readout:
            own = Steering(interventions=interventions, rules=rules, readout=readout, receipt=receipt)
        checked = await self.checked(own, self.variant)
        self.steer(own, self.variant)
        return checked

    async def take_variant(self, name: str | None) -> Variant | None:
        """Steer as a variant does, beside one's own steering; None: as none does. What is refused changes nothing."""
        variant = await self.client.variants.get(name) if name else None
        if variant is not None:
            await self.checked(self.own, variant)
        self.steer(self.own, variant)
        return variant

    async def checked(self, own: Steering | None, variant: Variant | None) -> Validation | None:
        """
        Let the server say whether it can steer so; of a variant alone it has said so before.

        Raises CommandError where both can be used, and not together.
        """
        from saeclamp import BadRequestError, InvalidArgumentError

        if own is None:
            return None
        checked = await self.client.steering.validate(own, [*self._said()])
        if variant is None:
            return checked
        try:
            whole = merge_variant(variant, own)
            assert whole is not None, "both are there"
            return await self.client.steering.validate(whole, [*self._said()])
        except (BadRequestError, InvalidArgumentError) as exc:
            raise CommandError(
                escape_to_one_line(
                    f"The variant {variant.id} cannot be used beside {in_words(own)}: {exc.message} Leave one of both out."
                )
            ) from exc

    def _said(self) -> list[dict[str, str]]:
        """Return messages by whose roles tokens can be chosen: those so far, or any."""
        steered = next((column for column in self.columns if column.steering or column.model), self.columns[0])
        return steered.messages or [{"role": "user", "content": "Hello"}]
