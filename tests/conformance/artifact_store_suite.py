"""What every artifact store must do. `test_artifact_stores.py` runs it over each adapter."""

import hashlib
import random
import threading
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from greenroom.domain.artifact_store import ArtifactStore
from greenroom.domain.errors import NotFound, ValidationError

UNKNOWN = "sha256:" + "0" * 64

CONTENTS = (b"", b"x", b"\x00\xff\r\n", b"many " * 1000)

MALFORMED_OWNERS = (
    *("", ".", "..", "../ses_1", "a/../../b", "a/b", "/etc", "a\\b", "-a", "_a", ":a", " a", "a b", "ä", "a\x00"),
    *("ses_1\n", "x" * 129),
)

MALFORMED_REFERENCES = (
    *("", "0" * 64, "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "A" * 64, UNKNOWN + "\n"),
    *("sha1:" + "0" * 64, "SHA256:" + "0" * 64, "sha256:../../../etc/passwd", "sha256:" + "../" * 21 + "x"),
    *("sha256:" + "٣" * 64, "sha256:sha256:" + "0" * 64, "../" + UNKNOWN),
)


def reference_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def run_in_threads(*works: Callable[[], None]) -> None:
    """All at once; the first failure of any of them."""
    failures: list[BaseException] = []
    together = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        together.wait()
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 - raised below
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class ArtifactStoreModel(RuleBasedStateMachine):
    """A store beside a dict of dicts."""

    owners = st.sampled_from(["a", "b", "ses:1.2-3_4", "B"])
    contents = st.sampled_from(CONTENTS) | st.binary(max_size=2)

    def __init__(self, store: ArtifactStore) -> None:
        super().__init__()
        self.store = store
        self.kept: dict[str, dict[str, bytes]] = {}

    @rule(owner=owners, content=contents)
    def put(self, owner: str, content: bytes) -> None:
        reference = self.store.put(owner, content)

        assert reference_of(content) == reference
        self.kept.setdefault(owner, {})[reference] = content

    @rule(owner=owners, content=contents)
    def get(self, owner: str, content: bytes) -> None:
        reference = reference_of(content)
        try:
            found = self.store.get(owner, reference)
        except NotFound:
            assert reference not in self.kept.get(owner, {})
        else:
            assert self.kept[owner][reference] == found

    @rule(owner=owners)
    def delete_owner(self, owner: str) -> None:
        self.store.delete_owner(owner)

        self.kept.pop(owner, None)

    @invariant()
    def it_is_what_the_dict_says(self) -> None:
        for owner in ("a", "b", "ses:1.2-3_4", "B"):
            assert sorted(self.kept.get(owner, {})) == self.store.references(owner)
        every = {reference: len(content) for kept in self.kept.values() for reference, content in kept.items()}
        assert sum(every.values()) == self.store.total_bytes()


def check_against_the_model(open_store: Callable[[], ArtifactStore], *, examples: int, steps: int) -> None:
    """Put, get and delete in random orders, each time in a store of its own."""

    class Model(ArtifactStoreModel):
        def __init__(self) -> None:
            super().__init__(open_store())

    run_state_machine_as_test(
        Model,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


class ArtifactStoreSuite:
    """The laws. A subclass gives the fixture `store`."""

    @pytest.mark.parametrize("content", CONTENTS)
    def test_bytes_come_back_as_they_were_put(self, store: ArtifactStore, content: bytes) -> None:
        reference = store.put("ses_1", content)

        assert reference_of(content) == reference
        assert content == store.get("ses_1", reference)

    def test_the_same_content_is_kept_once_whoever_puts_it(self, store: ArtifactStore) -> None:
        references = {store.put(owner, b"same") for owner in ("a", "b", "a", "c")}

        assert {reference_of(b"same")} == references
        assert 4 == store.total_bytes()

    def test_the_total_counts_each_content_once(self, store: ArtifactStore) -> None:
        totals = [store.total_bytes()]

        for owner, content in (("a", b"123"), ("b", b"123"), ("b", b"45"), ("a", b"")):
            store.put(owner, content)
            totals.append(store.total_bytes())
        store.delete_owner("a")
        totals.append(store.total_bytes())
        store.delete_owner("b")
        totals.append(store.total_bytes())

        assert [0, 3, 3, 5, 5, 5, 0] == totals

    def test_references_are_sorted_and_belong_to_their_owner(self, store: ArtifactStore) -> None:
        for owner, content in (("a", b"1"), ("a", b"2"), ("a", b"3"), ("b", b"3"), ("a", b"1")):
            store.put(owner, content)

        assert sorted(map(reference_of, (b"1", b"2", b"3"))) == store.references("a")
        assert [reference_of(b"3")] == store.references("b")
        assert [] == store.references("c")

    def test_what_another_owner_put_is_not_found(self, store: ArtifactStore) -> None:
        reference = store.put("a", b"secret")

        with pytest.raises(NotFound) as refused:
            store.get("b", reference)

        assert {"owner": "b", "reference": reference} == refused.value.details
        with pytest.raises(NotFound):
            store.get("a", UNKNOWN)

    def test_deleting_an_owner_keeps_what_another_still_refers_to(self, store: ArtifactStore) -> None:
        shared = [store.put(owner, b"shared") for owner in ("a", "b")]
        own = store.put("a", b"own")

        store.delete_owner("a")

        assert b"shared" == store.get("b", shared[1])
        assert ([], 6) == (store.references("a"), store.total_bytes())
        for reference in (shared[0], own):
            with pytest.raises(NotFound):
                store.get("a", reference)

    def test_deleting_an_owner_again_or_one_that_never_was_changes_nothing(self, store: ArtifactStore) -> None:
        store.put("a", b"1")
        store.put("b", b"2")

        for owner in ("a", "a", "never"):
            store.delete_owner(owner)

        assert ([], [reference_of(b"2")], 1) == (store.references("a"), store.references("b"), store.total_bytes())

    def test_a_deleted_owner_can_put_again(self, store: ArtifactStore) -> None:
        store.put("a", b"1")
        store.delete_owner("a")

        reference = store.put("a", b"1")

        assert b"1" == store.get("a", reference)
        assert 1 == store.total_bytes()

    @pytest.mark.parametrize("owner", ["a", "7", "x" * 128, "ses:1.2-3_4", "a..", "a:/".rstrip("/")])
    def test_every_well_formed_owner_is_served(self, store: ArtifactStore, owner: str) -> None:
        assert b"1" == store.get(owner, store.put(owner, b"1"))
        assert [reference_of(b"1")] == store.references(owner)
        store.delete_owner(owner)
        assert 0 == store.total_bytes()

    @pytest.mark.parametrize("owner", MALFORMED_OWNERS)
    def test_a_malformed_owner_is_refused_everywhere(self, store: ArtifactStore, owner: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.put(owner, b"1"),
            lambda: store.get(owner, UNKNOWN),
            lambda: store.delete_owner(owner),
            lambda: store.references(owner),
        ]
        for call in calls:
            with pytest.raises(ValidationError) as refused:
                call()
            assert {"field": "owner"} == refused.value.details
        assert 0 == store.total_bytes()

    @pytest.mark.parametrize("reference", MALFORMED_REFERENCES)
    def test_a_malformed_reference_is_refused(self, store: ArtifactStore, reference: str) -> None:
        store.put("a", b"1")

        with pytest.raises(ValidationError) as refused:
            store.get("a", reference)

        assert {"field": "reference"} == refused.value.details

    def test_threads_that_put_and_delete_lose_nothing_that_is_referred_to(self, store: ArtifactStore) -> None:
        contents = [b"0", b"11", b"222"]
        for content in contents:
            store.put("keeper", content)
        store.delete_owner("keeper")
        store.put("keeper", contents[0])

        def work(owner: str) -> Callable[[], None]:
            def put_and_delete() -> None:
                choose = random.Random(owner)
                for _ in range(40):
                    if choose.random() < 0.4:
                        store.delete_owner(owner)
                        assert [] == store.references(owner)
                    content = choose.choice(contents)
                    assert content == store.get(owner, store.put(owner, content))
                    assert contents[0] == store.get("keeper", reference_of(contents[0]))

            return put_and_delete

        owners = [f"ses_{index}" for index in range(4)]
        run_in_threads(*map(work, owners))

        referred = {reference for owner in ("keeper", *owners) for reference in store.references(owner)}
        assert sum(len(content) for content in contents if reference_of(content) in referred) == store.total_bytes()
        for owner in ("keeper", *owners):
            store.delete_owner(owner)
        assert 0 == store.total_bytes()

    def test_threads_that_put_the_same_for_one_owner_all_succeed(self, store: ArtifactStore) -> None:
        def put() -> None:
            assert b"same" * 1000 == store.get("a", store.put("a", b"same" * 1000))

        run_in_threads(*[put] * 8)

        assert ([reference_of(b"same" * 1000)], 4000) == (store.references("a"), store.total_bytes())
