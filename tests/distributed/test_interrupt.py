"""Signals become a flag, the flag becomes Stopped at a safe point, and nothing stays installed."""

import os
import signal
import threading

import pytest

from rlhf_pg.distributed.interrupt import Stopped, StopRequest


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_sets_the_flag_until_the_next_poll(number):
    with StopRequest() as stop:
        stop.raise_if_requested()
        assert not stop.requested
        send(number)
        assert stop.requested
        with pytest.raises(Stopped, match=signal.Signals(number).name):
            stop.raise_if_requested()


def test_a_second_sigint_interrupts_at_once():
    with StopRequest():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_sigint_after_sigterms_is_still_only_a_request():
    with StopRequest() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            send(number)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.requested


def test_the_handlers_of_before_come_back_even_after_an_error():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("mine"))
    of_sigint = signal.getsignal(signal.SIGINT)  # Python's own, or none where this runs in the background
    try:
        with pytest.raises(RuntimeError), StopRequest():
            assert signal.getsignal(signal.SIGINT) is not of_sigint
            raise RuntimeError
        send(signal.SIGTERM)
        assert heard == ["mine"]
        assert signal.getsignal(signal.SIGINT) is of_sigint
    finally:
        signal.signal(signal.SIGTERM, before)


def test_code_that_survives_plugin_errors_does_not_swallow_stopped():
    with StopRequest() as stop, pytest.raises(Stopped):
        send(signal.SIGTERM)
        try:
            stop.raise_if_requested()
        except Exception:
            pytest.fail("caught as an Exception")


def test_outside_the_main_thread_it_installs_nothing_but_can_be_asked():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with StopRequest() as stop:
            seen.append(signal.getsignal(signal.SIGTERM) is before)
            stop.request("asked")
            try:
                stop.raise_if_requested()
            except Stopped as stopped:
                seen.append(str(stopped))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, "asked"]
    assert signal.getsignal(signal.SIGTERM) is before
