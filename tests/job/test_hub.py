"""What process 0 decides, told over real sockets by stand-ins of the processes; what the watchdog tells it. No JAX."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from t5x_like.core.errors import UserError
from t5x_like.job import watchdog as watching
from t5x_like.job.config import JobConfig
from t5x_like.job.hub import Hub
from t5x_like.job.join import addresses
from t5x_like.job.line import Fault, Line, Messages, interval


class Process(Messages):
    """Says what it is told to say, and hears what process 0 says."""

    def __init__(self, address: tuple[str, int], index: int, count: int):
        super().__init__(socket.create_connection(address))
        self.connection.settimeout(10)
        self._heard: list[list] = []
        self.send("hello", index, count, f"host{index}")

    def hear(self, kind: str) -> list:
        """The values of the next message of this kind."""
        deadline = time.monotonic() + 10
        while True:
            assert time.monotonic() < deadline, self._heard
            for place, message in enumerate(self._heard):
                if message[0] == kind:
                    del self._heard[: place + 1]
                    return message[1:]
            self._heard += self.read()


@pytest.fixture
def job():
    """Function that starts the processes of a job of ``count``, of which some are ``missing``."""
    opened: list[Messages] = []
    hubs: list[Hub] = []

    def start(count: int, missing: tuple[int, ...] = (), arrival: float = 20.0, heartbeat: float = 20.0):
        listener = socket.create_server(("127.0.0.1", 0))
        own, mine = socket.socketpair()
        hubs.append(Hub([listener], own, count, "address", arrival, heartbeat))
        hubs[-1].start()
        opened.append(Messages(mine))  # process 0 comes by the listener too here
        found = {i: Process(listener.getsockname(), i, count) for i in range(count) if i not in missing}
        opened.extend(found.values())
        for each in found.values() if not missing else ():
            assert each.hear("go") == ["go", "address"]
        return found

    yield start
    for each in opened:
        each.connection.close()
    for hub in hubs:
        hub.join(10)
        assert not hub.is_alive()


def test_all_go_once_all_are_there_and_agree_or_hear_who_differs(job):
    processes = job(3)
    for each in processes.values():
        each.send("agree", "texts", "same")
    assert [each.hear("agreed") for each in processes.values()] == [["texts"]] * 3
    facts = {0: {"seed": 0, "a": 1}, 1: {"seed": 0, "a": 1}, 2: {"seed": 7, "a": 1}}
    for index, each in processes.items():
        each.send("agree", "config", str(facts[index]))
    for index in (0, 2):
        assert processes[index].hear("facts") == ["config"]
        processes[index].send("facts", "config", facts[index])
    for each in processes.values():
        topic, where, got, allowed = each.hear("refused")
        assert (topic, where) == ("config", "config") and "same in all" in allowed
        assert got == "process 2 (host2) differs from process 0 in\n    seed: 7, in process 0 0"


def test_all_stop_at_the_poll_after_the_furthest(job):
    processes = job(3)
    processes[1].send("stop", 15)
    for polls, each in zip((7, 9, 8), processes.values(), strict=True):
        each.hear("polls")
        each.send("polls", polls, True)
    assert [each.hear("at") for each in processes.values()] == [[10, 15]] * 3


@pytest.mark.parametrize("number, code", [(15, 75), (2, 130)])
def test_all_leave_where_one_has_nothing_to_save(job, number, code):
    processes = job(2)
    processes[0].send("stop", number)
    for ready, each in zip((True, False), processes.values(), strict=True):
        each.hear("polls")
        each.send("polls", 1, ready)
    assert [each.hear("leave") for each in processes.values()] == [[code]] * 2


def test_a_signal_before_all_have_come_ends_those_that_have(job):
    processes = job(3, missing=(2,))
    processes[1].send("stop", 15)
    assert [each.hear("leave") for each in processes.values()] == [[75]] * 2


def test_those_that_never_come_are_named(job):
    processes = job(5, missing=(2, 4), arrival=0.3)
    said = "processes 2, 4 of 5 never came to address within 0 s"
    assert [each.hear("end") for each in processes.values()] == [[1, [], said, False]] * 3


def test_two_of_one_index_and_another_count_are_refused(job):
    processes = job(3, missing=(2,))
    address = processes[0].connection.getpeername()
    twice = Process(address, 1, 3)
    assert "two processes say that they are process 1: host1 and host1" in processes[0].hear("end")[2]
    assert twice.hear("end")[0] == 2
    twice.connection.close()


def test_of_faults_at_once_the_cause_is_named(job):
    """One is killed; another's collective fails of it first."""
    processes = job(3)
    processes[2].send("fault", 1, "JaxRuntimeError", True)
    processes[1].connection.close()
    lost = "process 1 (host1) has ended without a word: killed, or its machine is gone"
    assert processes[0].hear("end") == [1, [1], lost, False]


def test_what_is_no_process_is_passed_over(job):
    processes = job(2, missing=(1,))
    address = processes[0].connection.getpeername()
    for text in (b"GET / HTTP/1.1\r\n\r\n", b'["alive", 1]\n', b'{"a": 1}\n', b'[[], 1]\n', b'["hello"]\n'):
        with socket.create_connection(address) as stranger:
            stranger.sendall(text)
    other = Process(address, 1, 2)
    assert other.hear("go") == ["go", "address"]
    other.connection.close()


@pytest.mark.parametrize("late, culprit", [
    ({0: (9, "step", 5.0, True), 1: (8, "data", 5.0, True), 2: (9, "step", 5.0, True)}, [1]),
    ({0: (9, "step", 5.0, True), 1: (9, "step", 5.0, True), 2: (9, "evaluate", 5.0, True)}, [2]),
    ({0: (9, "step", 5.0, True), 1: (8, "checkpoint", 5.0, False), 2: (9, "step", 5.0, True)}, None),
    ({0: (9, "step", 1.0, False), 1: (8, "data", 1.0, False), 2: (9, "step", 1.0, False)}, None),
])  # fmt: skip
def test_the_stuck_one_is_the_one_behind_once_its_own_time_is_over(job, late, culprit):
    processes = job(3, heartbeat=1.2)
    done = threading.Event()

    def live() -> None:
        while not done.wait(0.1):
            for index, each in processes.items():
                each.send("alive", *late[index])

    thread = threading.Thread(target=live)
    thread.start()
    try:
        if culprit is None:
            processes[0].connection.settimeout(1.5)
            with pytest.raises(EOFError):  # TimeoutError: nothing but that process 0 is alive
                deadline = time.monotonic() + 1.5
                while time.monotonic() < deadline:
                    for message in processes[0].read():
                        assert message[0] != "end", message
                raise EOFError
        else:
            code, found, why, stuck = processes[0].hear("end")
            assert (code, found, stuck) == (1, culprit, True)
            assert why.startswith(f"process {culprit[0]} (host{culprit[0]}) stuck for 5 s: {late[culprit[0]][1]}")
    finally:
        done.set()
        thread.join()


def test_one_that_is_silent_is_named(job):
    processes = job(2, heartbeat=0.6)
    deadline = time.monotonic() + 5
    processes[0].connection.settimeout(0.1)
    heard: list = []
    while not heard and time.monotonic() < deadline:
        processes[0].send("alive", 1, "step", 0.0, False)
        try:
            heard = [message for message in processes[0].read() if message[0] == "end"]
        except EOFError:  # nothing has come yet
            continue
    assert heard[0][2] == [1] and "process 1 (host1) has not been heard of for 1 s" in heard[0][3]


def test_a_line_agrees_and_raises_what_process_0_says():
    own, theirs = socket.socketpair()
    line, other = Line(own, 1, 2, 20.0), Messages(theirs)
    line.start()
    for answer in (("agreed", "texts"), ("refused", "texts", "texts", "process 1 differs", "the same")):
        threading.Timer(0.05, other.send, answer).start()
        if answer[0] == "agreed":
            line.agree("texts", {"a": 1})
        else:
            with pytest.raises(UserError, match="texts: process 1 differs\n  allowed: the same"):
                line.agree("texts", {"a": 1})
    other.send("bye")
    line.join(5)
    assert not line.is_alive()
    other.connection.close()
    own.close()
    assert interval(4, 30) == 1.0 and interval(1024, 30) == pytest.approx(5.12) and interval(4, 1) == 0.25


class Idle:
    """A clock that stands still."""

    changes, activity, mean = 0, "step", 0.0

    def seconds_per_step(self) -> float:
        return self.mean


def test_the_limit_is_learned_and_a_process_of_its_own_says_that_it_is_stuck_once(capsys):
    clock = Idle()
    config = JobConfig(step_limit=0.2, step_factor=5.0, phase_limit=0.0)
    with watching.Watchdog(config, clock, None, exits=False) as watchdog:
        clock.mean = 100.0
        time.sleep(0.5)
        assert not watchdog.status()[3]  # a step may take 100 s
        clock.mean, clock.activity = 0.0, "compile"
        time.sleep(0.3)
        assert not watchdog.status()[3]  # no limit
        assert not capsys.readouterr().err
        clock.activity = "step"
        time.sleep(0.4)
        assert watchdog.status()[2:] == (pytest.approx(1.2, abs=0.7), True)
        watchdog.polled()
        time.sleep(0.1)
        assert not watchdog.status()[3] and watchdog.status()[0] == 1
    said = capsys.readouterr().err
    assert said.count("error: stuck for 0 s: step") + said.count("error: stuck for 1 s: step") == 1
    assert "in test_the_limit_is_learned" in said


def test_who_looks_with_a_debugger_is_not_stuck():
    watchdog = watching.Watchdog(JobConfig(step_limit=0.1), Idle(), None, exits=False)
    here = {"__name__": "pdb", "watchdog": watchdog}
    exec("found = watchdog._debugged()", here)
    assert here["found"] and not watchdog._debugged()


def test_process_0_listens_on_its_own_network_only():
    assert addresses("127.0.0.1") == ["127.0.0.1"]
    assert addresses("localhost")[0] == "127.0.0.1" and set(addresses("localhost")) <= {"127.0.0.1", "::1"}
    assert not {"0.0.0.0", "::"} & set(addresses(socket.gethostname()))
    with pytest.raises(Fault, match=r"does not resolve: no-such-host\.invalid"):
        addresses("no-such-host.invalid")
