import os
import signal
import threading

import pytest

from lorakit.training.interrupt import Interrupted, StopSignals
from lorakit.world import ALONE, World


class Talking(World):
    """Processes of which this one is sent a signal while they talk; another knows of `TOLD`."""

    TOLD = 0

    def most(self, value: int) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return max(value, self.TOLD)


class TalkingOfOne(Talking):
    TOLD = int(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered(number: signal.Signals) -> None:
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number


def test_a_second_signal_acts_at_once() -> None:
    with StopSignals() as signals, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_comes_while_processes_agree_counts_at_the_next_step() -> None:
    with StopSignals() as signals:
        assert not signals.asked(Talking())
        assert signals.asked(ALONE)
        assert signals.agreed == signal.SIGINT


def test_one_that_others_have_spoken_of_is_still_the_first() -> None:
    with StopSignals() as signals:
        assert signals.asked(TalkingOfOne())
        assert signals.agreed == signal.SIGTERM
    with StopSignals() as signals:
        signals.agreed = signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_even_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), StopSignals():
        assert signal.getsignal(signal.SIGINT) != before[0]
        raise RuntimeError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_go_without() -> None:
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            with StopSignals() as signals:
                assert signals.received is None
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not failed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_codes(number: signal.Signals, code: int) -> None:
    assert Interrupted(number, "saved").exit_code == code
