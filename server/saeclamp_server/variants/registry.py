"""Registry of a server's variants, as requests name them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from saeclamp.types import MAX_RULES, NewVariant, Steering, Variant, VariantExport
from saeclamp.types.refusals import nearest
from saeclamp_server.database import DatabaseError
from saeclamp_server.errors import (
    AliasTakenError,
    BareVariantError,
    ContradictionError,
    InvalidRequestError,
    RequestError,
    UnknownModelError,
    UnknownVariantError,
    VariantChangedError,
    VariantReadOnlyError,
    VariantsUnavailableError,
)
from saeclamp_server.site_norms import rounded_other_way
from saeclamp_server.steering import ResolvedSteering, SteeringContext, resolve, roles_used
from saeclamp_server.steering.chat_spans import ChatSpans
from saeclamp_server.variants.names import ModelName, NamesInUse, is_alias, near_name, refuse_taken_alias
from saeclamp_server.variants.presets import presets
from saeclamp_server.variants.store import AliasInUseError, VariantStore
from saeclamp_server.variants.version import VariantVersion, canonical_json, resolved_fingerprint

logger = logging.getLogger("saeclamp.server")
RESERVED = ("export", "import")
"""Names that variants cannot have, because they are paths of our own endpoints."""

ResultT = TypeVar("ResultT")


class VariantRegistry:
    """Variants of the feature book (presets, read-only) and of users (kept in a store)."""

    def __init__(
        self,
        store: VariantStore,
        context: SteeringContext,
        bases: Collection[str],
        adapters: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """
        bases:    names under which the model is served
        adapters: returns the names of vLLM's LoRA adapters, which come and go
        """
        self._store, self._served, self._bases, self._adapters = store, context, list(bases), adapters
        self._presets = {(base, name): version for base in bases for name, version in presets(context, base).items()}

    async def create(self, new: NewVariant) -> tuple[Variant, bool]:
        """Create a version; return it, and whether it is new. Raises RequestError."""
        base = self._base(new.base)
        self._refuse_taken(base, new.name)
        version = VariantVersion(
            base, new.name, canonical_json(new.steering), new.description, self._meaning(new.steering)
        )

        def created() -> tuple[Variant, bool]:
            def check(in_use: NamesInUse) -> None:
                self._check_alias((base, new.name), new.alias, in_use, "alias", "name")

            kept, is_new = self._kept("alias", new.alias, lambda: self._store.create(version, new.alias, check))
            return kept.to_wire(self._store.all_aliases().get((base, new.name))), is_new

        return await self._ask(created)

    async def listed(self) -> list[Variant]:
        """List the version that every name means: the feature book's, then the users'. Raises RequestError."""

        def listed() -> list[Variant]:
            own, aliases = self._of_bases(self._store.current()), self._store.all_aliases()
            return [one.to_wire(aliases.get((one.base, one.name))) for one in (*self._presets.values(), *own)]

        return await self._ask(listed)

    async def get(self, name: str) -> VariantVersion:
        """Find a variant by `<name>`, `<name>@<sha>`, either behind `<base>:`, or alias. Raises UnknownVariantError."""
        parsed = self._parsed(name)
        found = await self._find(parsed) if parsed is not None else None
        if found is None:
            found = await self._of_alias(name)
        if found is None:
            raise await self._unknown(name, "name", 404)
        return found

    async def described(self, name: str) -> Variant:
        """Describe the variant that `get` finds, with its alias. Raises UnknownVariantError."""
        found = await self.get(name)
        return found.to_wire((await self._ask(self._store.all_aliases)).get((found.base, found.name)))

    async def delete(self, name: str) -> tuple[str, int]:
        """Delete a name and its versions; return its model's name and their number. Raises RequestError."""
        parsed = self._parsed(name)
        if parsed is None or parsed.sha256 is not None:
            raise InvalidRequestError(f"A variant is deleted by its name, with all its versions, not {name!r}.", "name")
        self._refuse_taken(parsed.base, parsed.variant)
        num = await self._ask(self._store.delete, parsed.base, parsed.variant)
        if not num:
            raise await self._unknown(name, "name", 404)
        return parsed.id, num

    async def exported(self) -> dict[str, Any]:
        """Export all versions that users have created."""

        def exported() -> dict[str, Any]:
            aliases = self._store.all_aliases()
            data = [one.to_export(aliases.get((one.base, one.name))) for one in self._store.all_versions()]
            return {"object": "variant.export", "data": data}

        return await self._ask(exported)

    async def import_(self, export: VariantExport) -> tuple[int, int]:
        """Import exported versions, all or none; return how many are new, and how many were known."""

        def taken_in() -> tuple[int, int]:
            versions, aliases = self._imported(export)

            def check(in_use: NamesInUse) -> None:
                own = dict.fromkeys((version.base, version.name) for version in versions)
                both = NamesInUse([*in_use.names, *own], {**in_use.aliases, **aliases})
                for one in own:
                    self._check_alias(one, aliases.get(one), both, "data", "data")

            num_new = self._kept("data", None, lambda: self._store.import_(versions, aliases, check))
            return num_new, len(versions) - num_new

        return await self._ask(taken_in)

    def _imported(self, export: VariantExport) -> tuple[list[VariantVersion], dict[tuple[str, str], str]]:
        """Parse and check exported versions and aliases. Raises RequestError for changed content or names that are taken."""
        versions, aliases = [], {}
        for number, item in enumerate(export.data):
            version = VariantVersion.imported(item)
            if version.sha256 != item.sha256:
                raise InvalidRequestError(
                    "The content is not that of its sha256: it was changed since it was exported.",
                    f"data[{number}].sha256",
                )
            self._refuse_taken(version.base, version.name, f"data[{number}].name")
            versions.append(version)
            if item.alias is not None:
                aliases[version.base, version.name] = item.alias
        return versions, aliases

    async def of_model(self, model: str) -> VariantVersion | None:
        """
        Find the variant that a request names as its model; None where the name is no variant's.

        Raises UnknownVariantError for a name of a variant of a served model that does not exist.
        """
        if model in self._bases:
            return None
        parsed = ModelName.parse(model)
        if parsed is None or parsed.base not in self._bases:
            return await self._of_alias(model)
        found = await self._find(parsed)
        if found is None:
            raise await self._unknown(model, "model", 404)
        return found

    async def of_bare_name(self, name: str) -> VariantVersion | None:
        """Find the variant by a name without its model's; None where there is none, or the name is a model's."""
        parsed = None if name in self._bases or ":" in name else self._parsed(name)
        return await self._find(parsed) if parsed is not None else None

    async def all_names(self) -> frozenset[str]:
        """Collect all names of variants, with their model's name and without, and aliases."""
        names, aliases = await self._names(), await self._ask(self._store.all_aliases)
        return frozenset({*(f"{base}:{name}" for base, name in names), *(name for _, name in names), *aliases.values()})

    def is_of_a_base(self, model: str) -> bool:
        """Tell whether a variant of a served model could have this name."""
        parsed = ModelName.parse(model)
        return parsed is not None and parsed.base in self._bases

    async def refuse_unknown(self, model: str, others: Collection[str], allows_any: bool = False) -> None:
        """
        Raise RequestError for a name that neither a model nor a variant has, or that is a variant's without its model's.

        others:     names in use besides those of models and variants
        allows_any: True if a name that is near none of them stands for the model
        """
        if model in self._bases or model in others:
            return
        bare = await self.of_bare_name(model)
        if bare is not None:
            raise BareVariantError(model, bare.to_wire().id)
        aliases = (await self._ask(self._store.all_aliases)).values()
        models, variants = [*self._bases, *others, *aliases], [f"{base}:{name}" for base, name in await self._names()]
        near = near_name(model, models, variants)
        if near is not None or not allows_any:
            raise UnknownModelError(model, [*models, *variants], near)

    def resolved(
        self, version: VariantVersion, own: Steering | None, conversation: ChatSpans | None = None
    ) -> ResolvedSteering:
        """
        Resolve a variant, and a request's own steering with it. Raises RequestError.

        conversation: needed where either chooses tokens by role
        """
        steering = self.steering(version)
        # norms that were measured again at this start may have come to lie on the other side of where they are rounded
        for context in (self._served, replace(self._served, rounding=rounded_other_way)):
            try:
                alone = resolve(steering, context, conversation)
            except RequestError as exc:
                raise _with_variant_context(exc, None, version) from None
            if resolved_fingerprint(alone.program) == version.meaning:
                break
        else:
            raise VariantChangedError(version.to_wire().version)
        if own is None:
            return alone
        try:
            # with the rounding under which the variant alone has its fingerprint
            return resolve(_merge(own, steering, version), context, conversation)
        except RequestError as exc:
            raise _with_variant_context(exc, own, version) from None

    def steering(self, version: VariantVersion) -> Steering:
        """Read a variant's steering. Raises VariantChangedError where this version of saeclamp does not know it."""
        try:
            return version.parsed
        except ValidationError as exc:
            raise VariantChangedError(version.to_wire().version) from exc

    def _parsed(self, name: str) -> ModelName | None:
        """Parse a name that may lack its model's; then it is of the first model."""
        return ModelName.parse(name if ":" in name else f"{self._bases[0]}:{name}")

    async def _find(self, name: ModelName) -> VariantVersion | None:
        preset = self._presets.get((name.base, name.variant))
        if preset is not None:
            return preset if name.sha256 is None or preset.sha256.startswith(name.sha256) else None
        return await self._ask(self._store.find, *name)

    async def _of_alias(self, name: str) -> VariantVersion | None:
        """Find the version that an alias means, if it is of a served model."""
        if not is_alias(name):
            return None
        found = await self._ask(self._store.find_alias, name)
        return found if found is not None and found.base in self._bases else None

    async def _unknown(self, name: str, param: str, status: int) -> UnknownVariantError:
        # as it was asked for: with its base, or without
        is_short = ":" not in name
        known = [
            variant if is_short and base == self._bases[0] else f"{base}:{variant}"
            for base, variant in await self._names()
        ]
        near = near_name(name, self._bases, known) if not is_short else nearest(name, known)
        return UnknownVariantError(name, known, near, param, status)

    async def _names(self) -> list[tuple[str, str]]:
        """List base and name of all variants, as `listed` does, without reading what they are: there may be very many."""
        own = await self._ask(self._store.current_names)
        return [*self._presets, *(key for key in own if key[0] in self._bases and key not in self._presets)]

    async def _ask(self, method: Callable[..., ResultT], *args: Any) -> ResultT:
        try:
            return await run_in_threadpool(method, *args)  # it waits for a disk or a network
        except DatabaseError as exc:
            logger.warning(str(exc))
            raise VariantsUnavailableError from exc

    def _check_alias(
        self, own: tuple[str, str], alias: str | None, in_use: NamesInUse, path: str, name_path: str
    ) -> None:
        others = in_use._replace(names=[*self._presets, *in_use.names], models=[*self._bases, *self._adapters()])
        if alias in RESERVED:
            raise InvalidRequestError(f"{path}: no variant can be named {alias!r}.", path)
        refuse_taken_alias(own, alias, others, path, name_path)

    def _kept(self, path: str, alias: str | None, keep: Callable[[], ResultT]) -> ResultT:
        try:
            return keep()
        except AliasInUseError as exc:
            raise AliasTakenError(alias or str(exc), "another variant's alias", path) from exc

    def _base(self, base: str | None) -> str:
        if base is not None and base not in self._bases:
            raise InvalidRequestError(f"base: this server serves {', '.join(self._bases)}, not {base!r}.", "base")
        return base or self._bases[0]

    def _refuse_taken(self, base: str, name: str, path: str = "name") -> None:
        if (base, name) in self._presets:
            raise VariantReadOnlyError(f"{base}:{name}", path)
        if name in RESERVED:
            raise InvalidRequestError(f"{path}: no variant can be named {name!r}.", path)

    def _of_bases(self, versions: Iterable[VariantVersion]) -> list[VariantVersion]:
        """Leave out versions of models that this server does not serve, and those whose name a preset has taken."""
        return [one for one in versions if one.base in self._bases and (one.base, one.name) not in self._presets]

    def _meaning(self, steering: Steering) -> str:
        """Fingerprint a steering as it resolves now. Raises RequestError, so what cannot be applied is not created."""
        # chosen by role, tokens depend on the conversation; which these are does not matter here
        anywhere = ChatSpans(0, ()) if roles_used(steering) else None
        return resolved_fingerprint(resolve(steering, self._served, anywhere).program)


def _merge(own: Steering, of_variant: Steering, version: VariantVersion) -> Steering:
    """Put a variant's parts behind a request's own, so that messages number those as the request does."""
    twice = {rule.name for rule in own.rules} & {rule.name for rule in of_variant.rules}
    if twice:
        raise InvalidRequestError(
            f"The variant {version.to_wire().id} has a rule named {sorted(twice)[0]!r} too.", "steering.rules"
        )
    # interventions are counted when they are resolved
    if len(own.rules) + len(of_variant.rules) > MAX_RULES:
        raise InvalidRequestError(
            f"The request has {len(own.rules)} rules and the variant {version.to_wire().id} has {len(of_variant.rules)}; "
            f"together at most {MAX_RULES} can be used.",
            "steering.rules",
        )
    # unchecked: both parts were checked, and together they may have more interventions than one `Steering` may
    return Steering.model_construct(
        interventions=(*own.interventions, *of_variant.interventions),
        rules=(*own.rules, *of_variant.rules),
        readout=own.readout or of_variant.readout,
        receipt=own.receipt,
    )


def _with_variant_context(exc: RequestError, own: Steering | None, version: VariantVersion) -> RequestError:
    """Make a refusal of a joined steering say so where it is about the variant's part, or names one of its interventions."""
    num_own = {"interventions": len(own.interventions) if own else 0, "rules": len(own.rules) if own else 0}
    cannot = f"The variant {version.to_wire().id} cannot be used with this:"

    def is_the_variants(path: str | None) -> bool:
        part = re.match(r"steering\.(interventions|rules)\[(\d+)\]", path or "")
        return part is not None and int(part[2]) >= num_own[part[1]]

    if is_the_variants(exc.param):
        exc.message, exc.param = f"{cannot} {exc.message}", "model"
    elif isinstance(exc, ContradictionError) and is_the_variants(exc.first):
        exc.message, exc.param = f"{cannot} it {exc.does}", "model"
    return exc
