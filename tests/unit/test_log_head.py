"""The end of a log: each batch of the newest epoch is placed once, whatever comes twice, late or from before."""

from hypothesis import given, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from greenroom.domain.log_head import REMEMBERED_BATCHES, Fenced, LogHead, OutOfOrder, Placed, Repeated


class HeadModel(RuleBasedStateMachine):
    """A writer of each epoch that may send anything; the log as a plain list of what was placed."""

    def __init__(self) -> None:
        super().__init__()
        self.head = LogHead(session_key=1)
        self.head.grant()
        self.epoch = 1
        self.log: list[tuple[int, int, int]] = []
        """Epoch, batch number and count of each placed batch."""
        self.answers: dict[int, tuple[int, int]] = {}
        self.clock = 0

    @rule()
    def grant(self) -> None:
        self.epoch += 1
        self.answers = {}

        assert self.epoch == self.head.grant()

    @rule(ahead=st.integers(-3, 3), count=st.integers(1, 5), behind=st.integers(0, 2))
    def send(self, ahead: int, count: int, behind: int) -> None:
        epoch = max(0, self.epoch - behind)
        number = len(self.answers) + ahead
        self.clock += 1
        end = sum(placed for _, _, placed in self.log)

        verdict = self.head.judge(epoch=epoch, batch_number=number)

        if epoch != self.epoch:
            assert Fenced(self.epoch) == verdict
        elif number in self.answers:
            assert Repeated(*self.answers[number]) == verdict
        elif number == len(self.answers) + 1:
            assert Placed(end + 1) == verdict
            self.head.advance(batch_number=number, count=count, recorded_at_us=self.clock, digest=b"")
            self.answers[number] = (end + 1, self.clock)
            self.log.append((epoch, number, count))
        else:
            assert OutOfOrder(len(self.answers) + 1) == verdict

    @rule()
    def send_many_and_repeat_them(self) -> None:
        for _ in range(3):
            self.send(ahead=1, count=2, behind=0)
        for number in range(-2, 1):
            self.send(ahead=number, count=2, behind=0)

    @invariant()
    def its_end_is_the_sum_of_what_was_placed(self) -> None:
        assert sum(count for _, _, count in self.log) == self.head.last_seq
        assert len({(epoch, number) for epoch, number, _ in self.log}) == len(self.log)


TestHeadAgainstItsModel = HeadModel.TestCase


def filled(batches: int) -> LogHead:
    head = LogHead(session_key=1)
    head.grant()
    for number in range(1, batches + 1):
        head.advance(batch_number=number, count=10, recorded_at_us=number, digest=b"")
    return head


@given(st.integers(1, 3 * REMEMBERED_BATCHES))
def test_the_newest_answers_are_remembered_and_their_number_is_bounded(batches: int) -> None:
    head = filled(batches)

    oldest = max(1, batches - REMEMBERED_BATCHES + 1)

    assert list(range(oldest, batches + 1)) == list(head.answers)
    assert Repeated((oldest - 1) * 10 + 1, oldest) == head.judge(epoch=1, batch_number=oldest)


def test_a_repeat_that_is_too_old_to_be_remembered_is_not_stored_again() -> None:
    head = filled(REMEMBERED_BATCHES + 1)

    assert OutOfOrder(REMEMBERED_BATCHES + 2) == head.judge(epoch=1, batch_number=1)


def test_judging_changes_nothing() -> None:
    head, same = filled(3), filled(3)

    for number in range(6):
        head.judge(epoch=1, batch_number=number)
        head.judge(epoch=2, batch_number=number)

    assert same == head


def test_a_new_epoch_counts_its_batches_from_one_and_goes_on_with_the_seqs() -> None:
    head = filled(3)

    head.grant()

    assert Placed(31) == head.judge(epoch=2, batch_number=1)
    assert OutOfOrder(1) == head.judge(epoch=2, batch_number=2)
    assert Fenced(2) == head.judge(epoch=1, batch_number=4)


def test_a_writer_from_the_future_is_refused() -> None:
    assert Fenced(1) == filled(1).judge(epoch=2, batch_number=1)
